"""From Hugging Face's tensor names to those of ExecuTorch's Phi-4-mini layout.

The fused `qkv_proj` and `gate_up_proj` are cut by rows; no value changes. The layout is that of
`executorch.examples.models.phi_4_mini.convert_weights` in 1.5.1, which is not imported: it needs torchtune.
"""

from __future__ import annotations

import re

from checkpoints.config import ModelConfig
from checkpoints.phi3 import split_names
from checkpoints.roles import EMBEDDING, HEAD, NORM, Rows

# A layer's modules in the order of the graph: ours, the one of the checkpoint, and Llama's name for the rows of it
# that are ours where they are not all.
MODULES = {
    "attention_norm": ("input_layernorm", None),
    "attention.wq": ("self_attn.qkv_proj", "self_attn.q_proj"),
    "attention.wk": ("self_attn.qkv_proj", "self_attn.k_proj"),
    "attention.wv": ("self_attn.qkv_proj", "self_attn.v_proj"),
    "attention.wo": ("self_attn.o_proj", None),
    "ffn_norm": ("post_attention_layernorm", None),
    "feed_forward.w1": ("mlp.gate_up_proj", "mlp.gate_proj"),
    "feed_forward.w3": ("mlp.gate_up_proj", "mlp.up_proj"),
    "feed_forward.w2": ("mlp.down_proj", None),
}


def layout(config: ModelConfig) -> dict[str, Rows]:
    """ExecuTorch name to the rows it is made of, for an untied model, in the order of the graph."""
    hidden, split = config.hidden_size, split_names(config)
    table = {"tok_embeddings.weight": Rows(EMBEDDING, 0, config.vocab_size)}
    for i in range(config.num_hidden_layers):
        for ours, (theirs, part) in MODULES.items():
            rows = Rows(f"model.layers.{i}.{theirs}.weight", 0, hidden)  # all of them have as many
            table[f"layers.{i}.{ours}.weight"] = split[f"model.layers.{i}.{part}.weight"] if part else rows
    return table | {
        "norm.weight": Rows(NORM, 0, hidden),
        "output.weight": Rows(HEAD, 0, config.vocab_size),
    }


def source_name(module: str) -> str | None:
    """The Hugging Face weight of which a layer's module is, of "layers.3.attention.wq"; None where it is none."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    return f"model.layers.{match[1]}.{MODULES[match[2]][0]}.weight" if match and match[2] in MODULES else None
