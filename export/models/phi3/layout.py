"""From Hugging Face's tensor names to those of ExecuTorch's Phi-4-mini layout.

The fused `qkv_proj` and `gate_up_proj` are cut by rows; no value changes. The layout is that of
`executorch.examples.models.phi_4_mini.convert_weights` in 1.5.1, which is not imported: it needs torchtune.
"""

from __future__ import annotations

from checkpoints.config import ModelConfig
from checkpoints.phi3 import split_names
from checkpoints.roles import EMBEDDING, HEAD, NORM, Rows


def layout(config: ModelConfig) -> dict[str, Rows]:
    """ExecuTorch name to the rows it is made of, for an untied model, in the order of the graph."""
    hidden, split = config.hidden_size, split_names(config)
    table = {"tok_embeddings.weight": Rows(EMBEDDING, 0, config.vocab_size)}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        table |= {
            ours + "attention_norm.weight": Rows(theirs + "input_layernorm.weight", 0, hidden),
            ours + "attention.wq.weight": split[theirs + "self_attn.q_proj.weight"],
            ours + "attention.wk.weight": split[theirs + "self_attn.k_proj.weight"],
            ours + "attention.wv.weight": split[theirs + "self_attn.v_proj.weight"],
            ours + "attention.wo.weight": Rows(theirs + "self_attn.o_proj.weight", 0, hidden),
            ours + "ffn_norm.weight": Rows(theirs + "post_attention_layernorm.weight", 0, hidden),
            ours + "feed_forward.w1.weight": split[theirs + "mlp.gate_proj.weight"],
            ours + "feed_forward.w3.weight": split[theirs + "mlp.up_proj.weight"],
            ours + "feed_forward.w2.weight": Rows(theirs + "mlp.down_proj.weight", 0, hidden),
        }
    return table | {
        "norm.weight": Rows(NORM, 0, hidden),
        "output.weight": Rows(HEAD, 0, config.vocab_size),
    }
