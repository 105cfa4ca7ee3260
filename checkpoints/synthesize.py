"""Writes a checkpoint of random weights with the exact files, names, shapes and spelling of a published one.

    python -m checkpoints.synthesize --like phi4-mini --out DIR [--layers 2 ...]

For trying an export at full size, or at any size, without a download. Modelled: shards, token ids, and the scales of
weights (`checkpoints.random_weights`). Not modelled: anything learned; the model babbles. The tokenizer is a
byte-level BPE with invented merges.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.config import read_config
from checkpoints.errors import BadInput, run
from checkpoints.families import tensor_shapes
from checkpoints.files import check_room, whole_folder, write_json
from checkpoints.published import CONFIGS, ENDS, FIRST, LAST, MULTIMODAL, TEXT_OF
from checkpoints.random_tokenizer import write_tokenizer
from checkpoints.random_weights import shards, write_index, write_weights
from checkpoints.synthesize_phi4mm import (
    LAYOUTS,
    SCALES,
    TOKENIZER,
    arrange,
    check_flags,
    media_config,
    write_settings,
)

LIKES = (*CONFIGS, MULTIMODAL)


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
    vision_layers: int | None = None,
    audio_layers: int | None = None,
    scale: int | None = None,
    layout: str | None = None,
) -> Path:
    """Write a checkpoint folder at `out`, which must not exist or be empty; whole or not at all.

    Sizes left out are those of `like`; with `heads` alone, `kv_heads` follows. Weights are bfloat16, the same
    for the same arguments and torch version, whatever `max_shard_gb` (10**9 bytes) and `layout`. The last four are of
    phi4-multimodal alone: `scale` divides all its widths, heads and ranks. Raises BadInput for sizes that do not fit
    together and for too small a disk.
    """
    if like not in LIKES:
        raise BadInput(f"--like {like} is not one of {', '.join(LIKES)}")
    if not max_shard_gb > 0:
        raise BadInput(f"--max-shard-gb must be positive, it is {max_shard_gb}")
    given = {"vision_layers": vision_layers, "audio_layers": audio_layers, "scale": scale, "layout": layout}
    if like != MULTIMODAL and (wrong := [name for name, value in given.items() if value is not None]):
        raise BadInput(f"--{wrong[0].replace('_', '-')} is for --like {MULTIMODAL}, not for {like}")
    scale, layout = 1 if scale is None else scale, layout or LAYOUTS[0]
    check_flags(layout, scale)
    raw, specials = _config(like, layers, hidden, intermediate, heads, kv_heads, vocab, untied, scale)
    if like == MULTIMODAL:
        raw = media_config(raw, specials, layout, scale, vision_layers, audio_layers)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as folder:
        write_json(folder / "config.json", raw)
        generation = {key: raw[key] for key in ("bos_token_id", "pad_token_id")}
        generation["eos_token_id"] = [specials[token] for token in ENDS[like]]
        write_json(folder / "generation_config.json", generation)
        if like == MULTIMODAL:
            write_settings(folder, layout, scale)
        try:
            config = read_config(folder)
        except BadInput as problem:
            raise BadInput(str(problem).replace(str(folder), str(out))) from None
        limit = int(max_shard_gb * 1e9)
        if like == MULTIMODAL:
            files, shapes = arrange(config, layout, limit)
        else:
            shapes = tensor_shapes(config)
            files = shards({name: name for name in shapes}, shapes, limit)
        check_room(out, 2 * sum(map(math.prod, shapes.values())))
        write_tokenizer(folder, like, raw["vocab_size"], specials, TOKENIZER if like == MULTIMODAL else {})
        write_weights(folder, files, shapes, seed)
        write_index(folder, files, shapes)
    return out


def _config(
    like: str,
    layers: int | None,
    hidden: int | None,
    intermediate: int | None,
    heads: int | None,
    kv_heads: int | None,
    vocab: int | None,
    untied: bool,
    scale: int,
) -> tuple[dict[str, Any], dict[str, int]]:
    """config.json as a dictionary, and the ids of the special tokens, for the sizes asked for."""
    published = CONFIGS[TEXT_OF.get(like, like)]
    raw = json.loads(json.dumps(published))
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        raw[key] //= scale
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
    if raw["vocab_size"] != published["vocab_size"]:
        least = len(specials) + 256
        if raw["vocab_size"] < least:
            raise BadInput(f"--vocab {raw['vocab_size']} is too small: bytes and special tokens alone are {least}")
        start = raw["vocab_size"] - len(LAST[like])
        specials |= {token: start + i for i, token in enumerate(LAST[like])}
        raw["pad_token_id"] = raw["eos_token_id"] = specials["<|endoftext|>"]
        if not FIRST[like]:
            raw["bos_token_id"] = specials["<|endoftext|>"]
    return raw, specials


def _resample(factors: list[float], length: int) -> list[float]:
    """`factors` stretched or shrunk to `length` entries by linear interpolation."""
    if length == len(factors):
        return factors
    positions = np.linspace(0, len(factors) - 1, max(length, 0))
    return [round(float(x), 6) for x in np.interp(positions, np.arange(len(factors)), factors)]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m checkpoints.synthesize", description="A checkpoint of noise.")
    parser.add_argument("--like", choices=LIKES, default="phi4-mini", help="model to take the sizes of")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    for name in ("layers", "hidden", "intermediate", "heads", "kv-heads", "vocab"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{name.replace('-', ' ')} instead of its own")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="X", help="10**9 bytes (default 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--untied", action="store_true", help="an lm_head.weight of its own")
    media = parser.add_argument_group(f"for --like {MULTIMODAL}")
    media.add_argument("--vision-layers", type=int, metavar="N", help="layers of the image encoder (default 27)")
    media.add_argument("--audio-layers", type=int, metavar="N", help="layers of the audio encoder (default 24)")
    media.add_argument("--scale", type=int, choices=SCALES, help="divides all widths, heads and ranks (default 1)")
    media.add_argument("--layout", choices=LAYOUTS, help="of the hub's main (default), or transformers' own")
    out = synthesize(**vars(parser.parse_args(argv)))
    files = list(out.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"{out}: {size / 1e9:.2f} GB of random weights in {len(files)} file(s)", file=sys.stderr)


if __name__ == "__main__":
    run(main)
