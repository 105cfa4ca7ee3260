"""Reads config.json (and generation_config.json) of a dense Phi-3 model into one frozen ModelConfig.

Covers Phi-4-mini-instruct and -reasoning, Phi-3-mini-4k and -128k and Phi-3.5-mini, in the older spelling
(`rope_scaling`, with `rope_theta` and `partial_rotary_factor` outside it) and the newer (`rope_parameters`), and the
same models saved as LlamaForCausalLM or MistralForCausalLM. Of Phi-4-multimodal the text model is read here, the rest
in `checkpoints.phi4mm_config`. Numbers come out as transformers 5.23 computes them (configuration_phi3.py, _llama.py,
_mistral.py, modeling_rope_utils.py); what transformers would silently reinterpret is refused, and token ids that it
would make up are left out. Knows nothing of tensors.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from checkpoints import phi4mm_config
from checkpoints.errors import BadInput, show
from checkpoints.files import present, read_json
from checkpoints.json_reader import MAX_LAYERS, MAX_POSITIONS, MAX_SIZE, Reader
from checkpoints.phi4mm_config import MODALITIES, Multimodal

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

ROPE_KEYS = {
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
    "factor", "attention_factor", "short_factor", "long_factor",
}  # fmt: skip
ADAPTER = "adapter_config.json"
NOT_DENSE = re.compile(r"lora|expert|moe|vision|image|img|audio|speech|embd_layer")


@dataclass(frozen=True)
class Architecture:
    """A class of transformers that computes a dense Phi-3, and what it takes where config.json lacks a key."""

    name: str
    family: str  # a key of `checkpoints.families.FAMILIES`
    rms_norm_eps: float
    max_position_embeddings: int
    original_max_position_embeddings: int | None  # None: that of the rotary parameters, else max_position_embeddings
    sliding_window: int | None = None
    rotates_part: bool = False  # of a head, where partial_rotary_factor says so
    more_keys: frozenset[str] = frozenset()  # of config.json, for what is not the text model


ARCHITECTURES = {
    "phi3": Architecture("Phi3ForCausalLM", "phi3", 1e-5, 4096, 4096, rotates_part=True),
    "llama": Architecture("LlamaForCausalLM", "phi3", 1e-6, 2048, None),
    "mistral": Architecture("MistralForCausalLM", "phi3", 1e-6, 131072, None, sliding_window=4096),
} | {
    model_type: Architecture(name, "phi4mm", 1e-5, 131072, 4096, rotates_part=True, more_keys=keys)
    for model_type, (name, keys) in phi4mm_config.LAYOUTS.items()
}


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
    family: str  # a key of `checkpoints.families.FAMILIES`
    multimodal: Multimodal | None  # beside the text model that all other fields describe
    notes: tuple[str, ...] = field(repr=False, compare=False)  # sentences worth telling
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

    def told(self, key: str) -> str:
        """A key with its value, as a part of a sentence that says where the value is from."""
        value = f"{key} {show(getattr(self, key))}"
        if self.raw.get(key) is not None:
            return f"{value} of {self.path}"
        return f"{value}, which transformers takes as {self.path} has none"

    def as_phi3(self) -> dict[str, Any]:
        """The same model as the config.json of a Phi3ForCausalLM, in the newer spelling."""
        rope: dict[str, Any] = {
            "rope_type": self.rope_type,
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }
        if self.short_factor is not None and self.long_factor is not None:
            rope |= {
                "short_factor": list(self.short_factor),
                "long_factor": list(self.long_factor),
                "attention_factor": self.attention_factor,
                "original_max_position_embeddings": self.original_max_position_embeddings,
            }
        same = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings",
            "original_max_position_embeddings", "tie_word_embeddings", "sliding_window", "bos_token_id",
            "pad_token_id",
        )  # fmt: skip
        return {key: getattr(self, key) for key in same} | {
            "model_type": "phi3",
            "architectures": [ARCHITECTURES["phi3"].name],
            "hidden_act": "silu",
            "eos_token_id": list(self.eos_token_ids) or None,
            "rope_parameters": rope,
        }

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

    A missing size, a wrong JSON type or number, another model family and anything that makes the model not a dense
    Phi-3 raise BadInput; other keys have transformers' defaults, but token ids have none.
    """
    path = folder / "config.json"
    if not present(path) and present(folder / ADAPTER):
        raise BadInput(alone(folder))
    raw = read_object(path)
    get = Reader(path, raw)
    architecture = _architecture(path, raw)

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

    eps = get.number("rms_norm_eps", default=architecture.rms_norm_eps)
    if eps >= 1:
        raise BadInput(f"{path}: rms_norm_eps must lie between 0 and 1, it is {eps}")

    positions = get.integer(
        "max_position_embeddings", high=MAX_POSITIONS, default=architecture.max_position_embeddings
    )
    rope = _rope(path, raw)
    original = _original_positions(
        get, rope, architecture.original_max_position_embeddings or positions, architecture
    )
    theta = (rope if rope.has("rope_theta") else get).number("rope_theta", default=10000.0)
    holder = rope if rope.has("partial_rotary_factor") else get
    partial = holder.number("partial_rotary_factor", default=1.0)
    if partial != 1 and not architecture.rotates_part:
        raise BadInput(f"{path}: partial_rotary_factor is {partial}, but {architecture.name} rotates whole heads")
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
        if head_dim != hidden // heads:
            raise BadInput(
                f"{path}: head_dim {head_dim} is not hidden_size {hidden} / num_attention_heads {heads}, which "
                f"transformers' Phi3Config wants of a model with longrope"
            )
        short_factor = rope.numbers("short_factor", rotary_dim // 2)
        long_factor = rope.numbers("long_factor", rotary_dim // 2)
        stretch = rope.number("factor") if rope.has("factor") else positions / original
        if rope.has("attention_factor"):
            attention_factor = rope.number("attention_factor")
        elif stretch > 1:
            attention_factor = math.sqrt(1 + math.log(stretch) / math.log(original))
    elif rope_type != "default":
        raise BadInput(f'{rope.path}: rope type {show(rope_type)} is not one of "default", "longrope", "su"')

    window = architecture.sliding_window if "sliding_window" not in raw else None
    generation = folder / "generation_config.json"
    ends = [Reader(generation, read_object(generation))] if present(generation) else []
    stops = [token for reader in (*ends, get) for token in reader.tokens("eos_token_id", vocab)]
    notes: list[str] = []

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
        sliding_window=get.integer("sliding_window", high=MAX_POSITIONS) if get.has("sliding_window") else window,
        bos_token_id=get.token("bos_token_id", vocab, notes),
        eos_token_ids=tuple(dict.fromkeys(stops)),
        pad_token_id=get.token("pad_token_id", vocab, notes),
        dtype=_dtype(path, raw),
        family=architecture.family,
        multimodal=_multimodal(folder, get) if architecture.more_keys else None,
        notes=tuple(notes),
        raw=raw,
        path=path,
    )


def with_modalities(config: ModelConfig, modalities: Collection[str]) -> ModelConfig:
    """The model with the part of `config.multimodal` that these of MODALITIES need; text is always there.

    Raises BadInput for a name that is none of them.
    """
    for modality in modalities:
        if modality not in MODALITIES:
            raise BadInput(f"the modality {modality} is not one of {', '.join(MODALITIES)}")
    if config.multimodal is None:
        return config
    return replace(config, multimodal=phi4mm_config.needed(config.multimodal, modalities))


def text_alone(config: ModelConfig) -> ModelConfig:
    """The text model of a multimodal one, which is a dense Phi-3 like any other."""
    if config.multimodal is None and config.family == "phi3":
        return config
    others = {"auto_map", *(key for architecture in ARCHITECTURES.values() for key in architecture.more_keys)}
    raw = {key: value for key, value in config.raw.items() if key not in others}
    return replace(config, family="phi3", multimodal=None, raw=raw)


def alone(folder: Path) -> str:
    """The sentence for an adapter in the place of a checkpoint."""
    base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    model = f"--checkpoint {base}" if isinstance(base, str) and base else "the --checkpoint it was trained on"
    return f"{folder} holds an adapter and no model: give {model} and --adapter {folder}"


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file whose top level must be an object; BadInput names the file when it is not."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def _architecture(path: Path, raw: Mapping[str, Any]) -> Architecture:
    """The class that computes the model; BadInput unless its text is a dense Phi-3's, without biases, with SwiGLU."""
    model_type = raw.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise BadInput(f"{path}: model_type is {show(model_type)}, only {', '.join(ARCHITECTURES)} can be read")
    architectures = raw.get("architectures") or [architecture.name]
    if architectures != [architecture.name]:
        raise BadInput(f"{path}: architectures is {show(architectures)}, of {model_type} only {architecture.name}")
    if (act := raw.get("hidden_act", "silu")) != "silu":
        raise BadInput(f'{path}: hidden_act is {show(act)}, only "silu" can be read')
    for key, value in raw.items():
        if value and key.endswith("bias"):
            raise BadInput(f"{path}: {show(key)} is {show(value)}, only models without biases can be read")
        if value and NOT_DENSE.search(key) and key not in architecture.more_keys:
            raise BadInput(f"{path}: {show(key)} is {show(value)}, only dense text models can be read")
    return architecture


def _multimodal(folder: Path, get: Reader) -> Multimodal:
    """What the folder of a multimodal model says beside its text model."""
    paths = {name: folder / place / ADAPTER for name, place in phi4mm_config.FOLDERS.items()}
    settings = {name: read_object(path) for name, path in paths.items() if present(path)}
    preprocessor = folder / "preprocessor_config.json"
    images = Reader(preprocessor, read_object(preprocessor) if present(preprocessor) else {})
    return phi4mm_config.read_multimodal(get, images, {name: (paths[name], raw) for name, raw in settings.items()})


def _original_positions(get: Reader, rope: Reader, default: int, architecture: Architecture) -> int:
    """Positions the model was trained with at first, above which longrope takes its long factors."""
    key = "original_max_position_embeddings"
    original = get.integer(key, high=MAX_POSITIONS, default=default)
    if rope.raw.get("rope_type", rope.raw.get("type")) not in ("longrope", "su"):
        return original
    inner = rope.integer(key, high=MAX_POSITIONS, default=original)
    if not get.has(key) and architecture.original_max_position_embeddings is None:
        original = inner
    # transformers overrides the inner number with the outer one, and Phi3Config's is 4096: only accept agreement.
    if inner != original:
        beside = f"the model's own {key} is" if get.has(key) else f"without {key} beside it transformers takes"
        raise BadInput(f"{rope.path}.{key} is {inner}, but {beside} {original}")
    if original < 2:
        raise BadInput(f"{get.path}: {key} must be at least 2, it is {original}")
    return original


def _rope(path: Path, raw: Mapping[str, Any]) -> Reader:
    """The object of rotary parameters, empty if there is none; rope_scaling wins, as in transformers."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    params = raw.get(key) or {}
    if not isinstance(params, dict):
        raise BadInput(f"{path}: {key} must be an object, it is {show(params)}")
    for name, value in params.items():
        # Ignoring a key (short_mscale, mrope_section, per-layer objects) would make a silently wrong model.
        if name not in ROPE_KEYS and value is not None:
            raise BadInput(f"{path}: {key} has the key {show(name)}, which dense Phi-3 models do not use")
    return Reader(f"{path}: {key}", params, dot=".")


def _dtype(path: Path, raw: Mapping[str, Any]) -> torch.dtype:
    name = raw.get("torch_dtype") or raw.get("dtype") or "bfloat16"
    if not isinstance(name, str) or name.removeprefix("torch.") not in DTYPES:
        raise BadInput(f"{path}: torch_dtype is {show(name)}, not one of {', '.join(DTYPES)}")
    return DTYPES[name.removeprefix("torch.")]
