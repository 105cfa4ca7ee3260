"""Reads config.json (and generation_config.json) of a dense Phi3ForCausalLM into one frozen ModelConfig.

Covers Phi-4-mini-instruct and -reasoning, Phi-3-mini-4k and -128k and Phi-3.5-mini, in the older spelling
(`rope_scaling`, with `rope_theta` and `partial_rotary_factor` outside it) and the newer (`rope_parameters`).
Numbers come out as transformers 5.23 computes them (configuration_phi3.py, modeling_rope_utils.py); what
transformers would silently reinterpret is refused. Knows nothing of tensors.
"""

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checkpoints.errors import BadInput, show

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Far above any published model: a larger number is a damaged file, and would only fail later as a
# huge allocation.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1 << 10
MAX_POSITIONS = 1 << 30

ROPE_KEYS = {
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
    "factor", "attention_factor", "short_factor", "long_factor",
}  # fmt: skip
NOT_DENSE = re.compile(r"lora|expert|moe|vision|image|img|audio|speech|embd_layer")


@dataclass(frozen=True)
class ModelConfig:
    """One dense Phi-3 model: sizes in elements, positions in tokens, token ids below vocab_size."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    max_position_embeddings: int
    original_max_position_embeddings: int
    rope_type: str  # "default" or "longrope"
    short_factor: tuple[float, ...] | None  # rotary_dim / 2 entries, None for "default"
    long_factor: tuple[float, ...] | None
    attention_factor: float  # multiplies cos and sin
    tie_word_embeddings: bool
    sliding_window: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    dtype: torch.dtype  # as declared; bfloat16 where config.json does not say
    model_type: str
    raw: dict[str, Any] = field(repr=False, compare=False)  # config.json as parsed
    path: Path = field(repr=False, compare=False)  # of config.json

    @property
    def rotary_dim(self) -> int:
        """Leading elements of each head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def q_dim(self) -> int:
        """Rows of qkv_proj that are queries; they come first."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of qkv_proj that are keys, and again as many that are values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def qkv_dim(self) -> int:
        """All rows of qkv_proj: queries, keys, values."""
        return self.q_dim + 2 * self.kv_dim

    def rope_factors(self, context: int) -> tuple[float, ...]:
        """Divisors of the rotary_dim / 2 inverse frequencies for sequences of up to `context` tokens.

        The long list when `context` exceeds original_max_position_embeddings, else the short list; all ones
        for rope_type "default". Source: _compute_longrope_parameters in transformers.
        """
        if self.short_factor is None or self.long_factor is None:
            return (1.0,) * (self.rotary_dim // 2)
        return self.long_factor if context > self.original_max_position_embeddings else self.short_factor


def read_config(folder: Path) -> ModelConfig:
    """Read and check `folder/config.json`, with the end tokens of `folder/generation_config.json` if there.

    Keys that Phi3Config defaults take its defaults; a missing size, a wrong JSON type or number, another
    model family and anything that makes the model not a dense Phi-3 raise BadInput.
    """
    path = folder / "config.json"
    raw = read_object(path)
    get = _Reader(path, raw)
    _refuse_other_models(path, raw)

    heads = get.integer("num_attention_heads", high=MAX_SIZE)
    hidden = get.integer("hidden_size", high=MAX_SIZE)
    vocab = get.integer("vocab_size", high=MAX_SIZE)
    kv_heads = get.integer("num_key_value_heads", high=MAX_SIZE) if get.has("num_key_value_heads") else heads
    if heads % kv_heads:
        raise BadInput(f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if get.has("head_dim"):
        head_dim = get.integer("head_dim", high=MAX_SIZE)
    elif hidden % heads:
        raise BadInput(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    else:
        head_dim = hidden // heads

    eps = get.number("rms_norm_eps", default=1e-5)
    if eps >= 1:
        raise BadInput(f"{path}: rms_norm_eps must lie between 0 and 1, it is {eps}")

    positions = get.integer("max_position_embeddings", high=MAX_POSITIONS, default=4096)
    original = get.integer("original_max_position_embeddings", high=MAX_POSITIONS, default=4096)
    rope = _rope(path, raw)
    theta = (rope if rope.has("rope_theta") else get).number("rope_theta", default=10000.0)
    holder = rope if rope.has("partial_rotary_factor") else get
    partial = holder.number("partial_rotary_factor", default=1.0)
    rotary_dim = int(head_dim * partial)
    if partial > 1 or rotary_dim < 2 or rotary_dim % 2:
        raise BadInput(
            f"{path}: head_dim {head_dim} times partial_rotary_factor {partial} rotates {rotary_dim} "
            f"elements of a head, which is not an even number from 2 to {head_dim}"
        )

    rope_type = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    short_factor = long_factor = None
    attention_factor = 1.0
    if rope_type in ("longrope", "su"):
        rope_type = "longrope"
        # transformers overrides the inner number with the outer one (4096 if absent): only accept agreement.
        inner = rope.integer("original_max_position_embeddings", high=MAX_POSITIONS, default=original)
        if inner != original:
            raise BadInput(
                f"{rope.path}.original_max_position_embeddings is {inner}, "
                f"but the model's own original_max_position_embeddings is {original}"
            )
        if original < 2:
            raise BadInput(f"{path}: original_max_position_embeddings must be at least 2, it is {original}")
        short_factor = rope.numbers("short_factor", rotary_dim // 2)
        long_factor = rope.numbers("long_factor", rotary_dim // 2)
        stretch = rope.number("factor") if rope.has("factor") else positions / original
        if rope.has("attention_factor"):
            attention_factor = rope.number("attention_factor")
        elif stretch > 1:
            attention_factor = math.sqrt(1 + math.log(stretch) / math.log(original))
    elif rope_type != "default":
        raise BadInput(f'{rope.path}: rope type {show(rope_type)} is not one of "default", "longrope", "su"')

    window = get.integer("sliding_window", high=MAX_POSITIONS) if get.has("sliding_window") else None
    generation = folder / "generation_config.json"
    ends = _Reader(generation, read_object(generation)) if generation.exists() else get
    if not ends.has("eos_token_id"):
        ends = get

    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=get.integer("intermediate_size", high=MAX_SIZE),
        num_hidden_layers=get.integer("num_hidden_layers", high=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=eps,
        rope_theta=theta,
        partial_rotary_factor=partial,
        max_position_embeddings=positions,
        original_max_position_embeddings=original,
        rope_type=rope_type,
        short_factor=short_factor,
        long_factor=long_factor,
        attention_factor=attention_factor,
        tie_word_embeddings=get.flag("tie_word_embeddings", default=False),
        sliding_window=window,
        bos_token_id=get.token("bos_token_id", vocab, default=1),
        eos_token_ids=ends.tokens("eos_token_id", vocab, default=32000),
        pad_token_id=get.token("pad_token_id", vocab, default=32000),
        dtype=_dtype(path, raw),
        model_type="phi3",
        raw=raw,
        path=path,
    )


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file whose top level must be an object; BadInput names the file when it is not."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"{path} is not JSON: {reprlib.repr(str(problem))}") from None
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def _refuse_other_models(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise BadInput unless `raw` describes a dense Phi3ForCausalLM without biases, with SwiGLU."""
    if (model_type := raw.get("model_type")) != "phi3":
        raise BadInput(f'{path}: model_type is {show(model_type)}, only dense "phi3" models can be read')
    architectures = raw.get("architectures") or ["Phi3ForCausalLM"]
    if architectures != ["Phi3ForCausalLM"]:
        raise BadInput(f'{path}: architectures is {show(architectures)}, only "Phi3ForCausalLM" can be read')
    if (act := raw.get("hidden_act", "silu")) != "silu":
        raise BadInput(f'{path}: hidden_act is {show(act)}, only "silu" can be read')
    for key, value in raw.items():
        if value and key.endswith("bias"):
            raise BadInput(f"{path}: {show(key)} is {show(value)}, only models without biases can be read")
        if value and NOT_DENSE.search(key):
            raise BadInput(f"{path}: {show(key)} is {show(value)}, only dense text models can be read")


def _rope(path: Path, raw: Mapping[str, Any]) -> "_Reader":
    """The object of rotary parameters, empty if there is none; rope_scaling wins, as in transformers."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    params = raw.get(key) or {}
    if not isinstance(params, dict):
        raise BadInput(f"{path}: {key} must be an object, it is {show(params)}")
    for name, value in params.items():
        # Ignoring a key (short_mscale, mrope_section, per-layer objects) would make a silently wrong model.
        if name not in ROPE_KEYS and value is not None:
            raise BadInput(f"{path}: {key} has the key {show(name)}, which dense Phi-3 models do not use")
    return _Reader(f"{path}: {key}", params, dot=".")


def _dtype(path: Path, raw: Mapping[str, Any]) -> torch.dtype:
    name = raw.get("torch_dtype") or raw.get("dtype") or "bfloat16"
    if not isinstance(name, str) or name.removeprefix("torch.") not in DTYPES:
        raise BadInput(f"{path}: torch_dtype is {show(name)}, not one of {', '.join(DTYPES)}")
    return DTYPES[name.removeprefix("torch.")]


class _Reader:
    """Typed access to one JSON object; every complaint starts with the object's place and the key."""

    def __init__(self, path: Path | str, raw: Mapping[str, Any], dot: str = ": ") -> None:
        self.path, self.raw, self.dot = path, raw, dot

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def integer(self, key: str, *, low: int = 1, high: int, default: int | None = None) -> int:
        value = self._take(key, default)
        if type(value) is not int:
            raise self._bad(key, "must be an integer", value)
        if not low <= value <= high:
            raise self._bad(key, f"must lie between {low} and {high}", value)
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        return self._positive(key, self._take(key, default))

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        value = self._take(key, None)
        if not isinstance(value, list):
            raise self._bad(key, "must be a list of numbers", value)
        if len(value) != length:
            place = f"{self.path}{self.dot}{key}"
            raise BadInput(f"{place} has {len(value)} entries, half the rotated elements are {length}")
        return tuple(self._positive(f"{key}[{i}]", entry) for i, entry in enumerate(value))

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self._bad(key, "must be true or false", value)
        return value

    def token(self, key: str, vocab: int, *, default: int) -> int | None:
        value = self.raw.get(key, default)
        return None if value is None else self._token(key, value, vocab)

    def tokens(self, key: str, vocab: int, *, default: int) -> tuple[int, ...]:
        value = self.raw.get(key, default)
        if value is None:
            return ()
        if not isinstance(value, list):
            return (self._token(key, value, vocab),)
        return tuple(dict.fromkeys(self._token(f"{key}[{i}]", entry, vocab) for i, entry in enumerate(value)))

    def _take(self, key: str, default: Any) -> Any:
        if key in self.raw:
            return self.raw[key]
        if default is None:
            raise BadInput(f"{self.path}{self.dot}{key} is missing")
        return default

    def _positive(self, key: str, value: Any) -> float:
        if type(value) not in (int, float):
            raise self._bad(key, "must be a number", value)
        if not 0 < value < 1e30:  # also refuses NaN
            raise self._bad(key, "must be positive and finite", value)
        return float(value)

    def _token(self, key: str, value: Any, vocab: int) -> int:
        if type(value) is not int:
            raise self._bad(key, "must be a token id", value)
        if not 0 <= value < vocab:
            raise BadInput(f"{self.path}{self.dot}{key} is {show(value)}, vocab_size is {vocab}")
        return value

    def _bad(self, key: str, rule: str, value: Any) -> BadInput:
        return BadInput(f"{self.path}{self.dot}{key} {rule}, it is {show(value)}")
