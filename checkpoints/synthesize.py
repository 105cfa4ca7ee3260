"""Writes a checkpoint of random weights with the exact files, names, shapes and spelling of a published one.

    python -m checkpoints.synthesize --like phi4-mini --out DIR [--layers 2 ...]

For trying an export at full size, or at any size, without a download. Modelled: a standard deviation per kind
of matrix, rows and columns of unequal scale, a few columns six times larger (the outlier channels that make
4-bit rounding hard), norm weights around 1, shards, token ids. Not modelled: anything learned; the model
babbles. The numbers are plausible, not measured from a published checkpoint. The tokenizer is a byte-level
BPE with invented merges.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput, run
from checkpoints.families import tensor_shapes
from checkpoints.files import check_room, whole_folder, write_json
from checkpoints.safetensors_io import make_header

# fmt: off
LONG_FACTOR = [
    1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03,
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5,
    44.16, 47.77,
]
# fmt: on

# config.json as published, without the keys that name remote code.
CONFIGS: dict[str, dict[str, Any]] = {
    "phi4-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 199999,
        "embd_pdrop": 0.0,
        "eos_token_id": 199999,
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 199999,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": LONG_FACTOR, "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 200064,
    },
    "phi3-mini-4k": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": 32000,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 32064,
    },
}

# Tokens before the bytes, and tokens after the merges by their published ids; a smaller vocabulary ends with
# the latter in the same order.
FIRST = {"phi4-mini": [], "phi3-mini-4k": ["<unk>", "<s>", "</s>"]}
LAST = {
    "phi4-mini": {
        "<|endoftext|>": 199999,
        "<|assistant|>": 200019,
        "<|end|>": 200020,
        "<|user|>": 200021,
        "<|system|>": 200022,
        "<|tool|>": 200023,
        "<|/tool|>": 200024,
        "<|tool_call|>": 200025,
        "<|/tool_call|>": 200026,
        "<|tool_response|>": 200027,
    },
    "phi3-mini-4k": {
        "<|endoftext|>": 32000,
        "<|assistant|>": 32001,
        "<|system|>": 32006,
        "<|end|>": 32007,
        "<|user|>": 32010,
    },
}
ENDS = {
    "phi4-mini": ["<|end|>", "<|endoftext|>"],
    "phi3-mini-4k": ["<|end|>", "<|assistant|>", "<|endoftext|>"],
}
TURN = {"phi4-mini": "", "phi3-mini-4k": "\\n"}  # what the chat template puts after each special token
SPLIT = (  # how the published tokenizer cuts text into words: the pattern of tiktoken's o200k_base
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

STD = {"embed_tokens": 0.02, "qkv_proj": 0.025, "o_proj": 0.018, "gate_up_proj": 0.025, "down_proj": 0.018}
ROW_SPREAD, COLUMN_SPREAD, NORM_SPREAD = 0.15, 0.1, 0.1  # of the logarithm, for norms of the value
OUTLIERS, OUTLIER_SCALE = 200, 6.0  # one column in 200 is 6 times larger
BLOCK, CHUNK = 1 << 26, 1 << 22  # elements


def synthesize(
    out: Path,
    like: str = "phi4-mini",
    layers: int | None = None,
    hidden: int | None = None,
    intermediate: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    vocab: int | None = None,
    max_shard_gb: float = 5.0,
    seed: int = 0,
    untied: bool = False,
) -> Path:
    """Write a checkpoint folder at `out`, which must not exist or be empty; whole or not at all.

    Sizes left out are those of `like`; with `heads` alone, `kv_heads` follows. Weights are bfloat16, the same
    for the same arguments and torch version, whatever `max_shard_gb` (10**9 bytes). Raises BadInput for sizes
    that do not fit together and for too small a disk.
    """
    if like not in CONFIGS:
        raise BadInput(f"--like {like} is not one of {', '.join(CONFIGS)}")
    if not max_shard_gb > 0:
        raise BadInput(f"--max-shard-gb must be positive, it is {max_shard_gb}")
    raw, specials = _config(like, layers, hidden, intermediate, heads, kv_heads, vocab, untied)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as folder:
        write_json(folder / "config.json", raw)
        generation = {key: raw[key] for key in ("bos_token_id", "pad_token_id")}
        generation["eos_token_id"] = [specials[token] for token in ENDS[like]]
        write_json(folder / "generation_config.json", generation)
        try:
            shapes = tensor_shapes(read_config(folder))
        except BadInput as problem:
            raise BadInput(str(problem).replace(str(folder), str(out))) from None
        check_room(out, 2 * sum(map(math.prod, shapes.values())))
        _write_tokenizer(folder, like, raw["vocab_size"], specials)
        _write_shards(folder, shapes, int(max_shard_gb * 1e9), seed)
    return out


def published_config(like: str = "phi4-mini") -> ModelConfig:
    """The configuration of a published model, without its files; it names no end tokens but its config.json's."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "config.json"), CONFIGS[like])
        return read_config(Path(folder))


def _config(
    like: str,
    layers: int | None,
    hidden: int | None,
    intermediate: int | None,
    heads: int | None,
    kv_heads: int | None,
    vocab: int | None,
    untied: bool,
) -> tuple[dict[str, Any], dict[str, int]]:
    """config.json as a dictionary, and the ids of the special tokens, for the sizes asked for."""
    raw = json.loads(json.dumps(CONFIGS[like]))
    if heads is not None and kv_heads is None:
        kv_heads = heads if like == "phi3-mini-4k" else math.gcd(heads, raw["num_key_value_heads"])
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }
    raw.update({key: size for key, size in sizes.items() if size is not None})
    raw["tie_word_embeddings"] = raw["tie_word_embeddings"] and not untied
    if (rope := raw["rope_scaling"]) and raw["num_attention_heads"] > 0:
        rotated = int(raw["hidden_size"] // raw["num_attention_heads"] * raw["partial_rotary_factor"]) // 2
        rope["long_factor"] = _resample(rope["long_factor"], rotated)
        rope["short_factor"] = [1.0] * rotated

    specials = {token: i for i, token in enumerate(FIRST[like])} | LAST[like]
    if raw["vocab_size"] != CONFIGS[like]["vocab_size"]:
        least = len(specials) + 256
        if raw["vocab_size"] < least:
            raise BadInput(f"--vocab {raw['vocab_size']} is too small: bytes and special tokens alone are {least}")
        start = raw["vocab_size"] - len(LAST[like])
        specials |= {token: start + i for i, token in enumerate(LAST[like])}
        raw["pad_token_id"] = raw["eos_token_id"] = specials["<|endoftext|>"]
        if like == "phi4-mini":
            raw["bos_token_id"] = specials["<|endoftext|>"]
    return raw, specials


def _resample(factors: list[float], length: int) -> list[float]:
    """`factors` stretched or shrunk to `length` entries by linear interpolation."""
    if length == len(factors):
        return factors
    positions = np.linspace(0, len(factors) - 1, max(length, 0))
    return [round(float(x), 6) for x in np.interp(positions, np.arange(len(factors)), factors)]


def _write_tokenizer(folder: Path, like: str, size: int, specials: dict[str, int]) -> None:
    """tokenizer.json with exactly `size` entries, and tokenizer_config.json with the published chat turns."""
    tail = min(specials[token] for token in LAST[like])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda char: (not char.islower(), char))
    # Pairs of bytes, then pairs with a byte more: every string once, those of lowercase letters first.
    ranked = sorted((max(i, j), i, j) for i in range(256) for j in range(256))
    pairs = [(alphabet[i], alphabet[j]) for _, i, j in ranked]
    triples = ((a + b, c) for a, b in pairs for c in alphabet)
    merges = list(islice(chain(pairs, triples), tail - len(FIRST[like]) - len(alphabet)))
    names = FIRST[like] + alphabet + ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    by_id = {i: token for token, i in specials.items()}
    added = [by_id.get(i, f"<|dummy_{i}|>") for i in [*range(len(FIRST[like])), *range(tail, size)]]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    template = (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>TURN' + message['content'] + '<|end|>TURN' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>TURN' }}{% else %}{{ eos_token }}{% endif %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>" if FIRST[like] else "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONFIGS[like]["max_position_embeddings"],
        "chat_template": template.replace("TURN", TURN[like]),
    }
    write_json(folder / "tokenizer_config.json", settings)


def _write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], limit: int, seed: int) -> None:
    """Write the tensors in order into safetensors files of at most `limit` bytes of data, with an index."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if shards[-1] and filled + 2 * math.prod(shape) > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += 2 * math.prod(shape)

    total = 2 * sum(map(math.prod, shapes.values()))
    generator = torch.Generator().manual_seed(seed)
    largest = max(map(math.prod, shapes.values()))
    block = torch.empty(min(BLOCK, 4 * largest), dtype=torch.bfloat16)
    for start in range(0, block.numel(), CHUNK):
        part = block[start : start + CHUNK]
        part.copy_(torch.randn(part.shape, generator=generator))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    weight_map = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("random weights", total=total)
        for i, shard in enumerate(shards, start=1):
            single = len(shards) == 1
            file = "model.safetensors" if single else f"model-{i:05}-of-{len(shards):05}.safetensors"
            weight_map.update(dict.fromkeys(shard, file))
            with (folder / file).open("wb") as handle:
                meta = {
                    name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shard.items()
                }
                handle.write(make_header(meta, {"format": "pt"})[0])
                for name, shape in shard.items():
                    for chunk in _random(name, shape, block, generator):
                        handle.write(chunk.view(torch.int16).numpy().data)
                        progress.advance(task, 2 * chunk.numel())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def _random(
    name: str, shape: tuple[int, ...], block: torch.Tensor, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield one weight in pieces of whole rows, bfloat16.

    Drawing 3.8 billion normal numbers takes minutes: a matrix is cut from `block`, normal numbers drawn once,
    and scaled by row and column. Pieces start at different remainders modulo the row length, so that no two
    rows of a matrix are the same stretch of the block.
    """
    if len(shape) == 1:
        yield (1 + NORM_SPREAD * torch.randn(shape, generator=generator)).clamp_(min=0.1).bfloat16()
        return
    rows, columns = shape
    std = next((value for key, value in STD.items() if key in name), STD["embed_tokens"])
    by_row = (std * torch.exp(ROW_SPREAD * torch.randn(rows, 1, generator=generator))).bfloat16()
    by_column = torch.exp(COLUMN_SPREAD * torch.randn(columns, generator=generator))
    by_column[torch.randperm(columns, generator=generator)[: math.ceil(columns / OUTLIERS)]] *= OUTLIER_SCALE
    by_column = by_column.bfloat16()
    step = min(rows, max(1, CHUNK // columns))
    span = (block.numel() - step * columns) // columns * columns  # a multiple of columns keeps the remainders
    offset = int(torch.randint(span, (1,), generator=generator))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        piece = block[offset : offset + count * columns].view(count, columns) * by_column
        yield piece.mul_(by_row[start : start + count])
        offset = (offset + step * columns + 1) % span


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m checkpoints.synthesize", description="A checkpoint of noise.")
    parser.add_argument("--like", choices=list(CONFIGS), default="phi4-mini", help="model to take the sizes of")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    for name in ("layers", "hidden", "intermediate", "heads", "kv-heads", "vocab"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{name.replace('-', ' ')} instead of its own")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="X", help="10**9 bytes (default 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--untied", action="store_true", help="an lm_head.weight of its own")
    out = synthesize(**vars(parser.parse_args(argv)))
    files = list(out.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"{out}: {size / 1e9:.2f} GB of random weights in {len(files)} file(s)", file=sys.stderr)


if __name__ == "__main__":
    run(main)
