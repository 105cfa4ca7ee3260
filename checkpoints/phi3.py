"""The dense Phi-3 family on disk: names, roles and shapes of its tensors, as transformers spells them."""

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import torch

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput, show
from checkpoints.safetensors_io import Entry

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYER = re.compile(r"model\.layers\.([0-9]{1,5})\.")
# Buffers that files written by transformers before 4.40 still carry; they are recomputed, never read.
LEGACY = re.compile(r"model\.layers\.[0-9]{1,5}\.self_attn\.rotary_emb\.inv_freq")


class Role(Enum):
    """What a weight is to the model, which decides how it is quantized."""

    EMBEDDING = "embedding"
    NORM = "norm"
    LINEAR = "linear"  # of a layer
    HEAD = "head"


def role(name: str) -> Role:
    """The role of the weight with this name."""
    if name == EMBEDDING:
        return Role.EMBEDDING
    if name == HEAD:
        return Role.HEAD
    return Role.NORM if "norm" in name else Role.LINEAR


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, in model order; lm_head.weight only when untied."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.self_attn.qkv_proj.weight"] = (config.qkv_dim, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, config.q_dim)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    shapes[NORM] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def check_tensors(folder: Path, config: ModelConfig, entries: Mapping[str, Entry]) -> None:
    """Raise BadInput unless names, shapes and dtypes are those of `config`."""
    if quantization := config.raw.get("quantization_config"):
        raise BadInput(f"{config.path}: these weights are already quantized ({show(quantization)})")
    expected = tensor_shapes(config)
    for name, entry in entries.items():
        if name.endswith(".bias"):
            raise BadInput(f"{entry.file}: {show(name)} is a bias, dense Phi-3 models have none")
    layers = {int(match[1]) for name in entries if (match := LAYER.match(name))}
    if len(layers) != config.num_hidden_layers:
        raise BadInput(
            f"{folder} has {len(layers)} layers of tensors, "
            f"config.json says num_hidden_layers {config.num_hidden_layers}"
        )
    for name in expected:
        if name not in entries:
            untied = ", and config.json says tie_word_embeddings is false" if name == HEAD else ""
            raise BadInput(f"{folder} has no tensor {name}{untied}")
    for name, entry in entries.items():
        if name not in expected:
            raise BadInput(f"{entry.file}: {show(name)} is not a tensor of a dense Phi-3 model")
        if entry.shape != expected[name]:
            raise BadInput(f"{entry.file}: {name} has shape {entry.shape}, config.json makes it {expected[name]}")
        if entry.dtype not in DTYPES:
            raise BadInput(f"{entry.file}: {name} is {entry.dtype}, not bfloat16, float16 or float32")
