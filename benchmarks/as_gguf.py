"""Makes a GGUF file for llama.cpp from a checkpoint, in the recipe of our files: 4 bits in groups of 32, embedding 8.

    uv run --group peers python -m benchmarks.as_gguf --checkpoint DIR --out FILE.gguf

Q4_0 for the linears and the head, which gets a weight of its own as in our files, Q8_0 for the embedding, rounded by
the package `gguf`. Keys and names are those of llama.cpp's own converter for Phi-3. The file has no tokenizer:
benchmarks feed ids. Weights pass through memory one at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput, run
from checkpoints.files import aside, publish
from checkpoints.roles import EMBEDDING, HEAD, NORM, Role, role
from checkpoints.weights import open_checkpoint

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
KINDS = {Role.LINEAR: "Q4_0", Role.HEAD: "Q4_0", Role.EMBEDDING: "Q8_0", Role.NORM: "F32"}


def write_gguf(folder: Path, out: Path) -> None:
    """Write the model of a checkpoint's folder, whole or not at all; BadInput without the package `gguf`."""
    try:
        import gguf
    except ImportError:
        raise BadInput("the package gguf is not installed: uv run --group peers brings it") from None

    checkpoint = open_checkpoint(folder)
    config = checkpoint.config

    def packed(name: str) -> np.ndarray:
        kind = gguf.GGMLQuantizationType[KINDS[role(name)]]
        weight = EMBEDDING if name == HEAD and config.tie_word_embeddings else name
        try:
            return np.ascontiguousarray(gguf.quants.quantize(checkpoint.tensor(weight).float().numpy(), kind))
        finally:
            checkpoint.release(weight)

    with aside(out) as partial:
        writer = gguf.GGUFWriter(partial, "phi3")
        _describe(writer, config, gguf.LlamaFileType.MOSTLY_Q4_0)
        names = dict(_names(config))
        for name, theirs in names.items():
            kind = gguf.GGMLQuantizationType[KINDS[role(name)]]
            shape = checkpoint.shape(EMBEDDING if name == HEAD else name)
            per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if shape[-1] % per_block:
                raise BadInput(
                    f"{folder}: rows of {name} are {shape[-1]} long, {kind.name} takes {per_block} at once"
                )
            size = int(np.prod(shape)) // per_block * block_bytes
            writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, raw_dtype=kind)
        rotary = {
            f"rope_factors_{name}.weight": np.array(factors, np.float32)
            for name, factors in (("long", config.long_factor), ("short", config.short_factor))
            if factors is not None
        }
        for name, values in rotary.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            writer.write_tensor_data(packed(name))
        for values in rotary.values():
            writer.write_tensor_data(values)
        writer.close()
        publish(partial, out)


def _names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Name of every weight, the head's too where the embedding stands for it -> llama.cpp's name."""
    yield from TOP.items()
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            yield f"model.layers.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight"


def _describe(writer: Any, config: ModelConfig, file_type: int) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_rope_scaling_attn_factors(config.attention_factor)
    writer.add_sliding_window(0)  # how llama.cpp tells Phi-4 from Phi-3
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(file_type)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.as_gguf", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.gguf")
    flags = parser.parse_args(argv)
    write_gguf(flags.checkpoint, flags.out)
    return 0


if __name__ == "__main__":
    run(main)
