"""A layer of transformers' Phi3, cut where a linear reads its input, so that a calibration can stop there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.config import ModelConfig
from checkpoints.roles import Rows
from export.models.family import CutLayer, Site


def sites(config: ModelConfig) -> tuple[Site, ...]:
    """The four linears of a layer in the order of its forward pass, with the rows that make their inputs.

    Attention gives each channel of a value head as often as there are query heads to it, and SwiGLU each row of up
    once: both are proportional to the value, so a factor may move from one side to the other.
    """
    hidden, inner, group = config.hidden_size, config.intermediate_size, config.q_dim // config.kv_dim
    values = torch.arange(config.kv_dim).view(config.num_key_value_heads, 1, config.head_dim)
    values = values.expand(-1, group, -1).reshape(-1)
    qkv, up = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
    every = torch.arange(hidden)
    return (
        Site(qkv, Rows("input_layernorm.weight", 0, hidden), every),
        Site("self_attn.o_proj.weight", Rows(qkv, config.q_dim + config.kv_dim, config.qkv_dim), values),
        Site(up, Rows("post_attention_layernorm.weight", 0, hidden), every),
        Site("mlp.down_proj.weight", Rows(up, inner, 2 * inner), torch.arange(inner)),
    )


class CutPhi3Layer(CutLayer):
    """See `export.models.family.CutLayer`; takes the layer over."""

    def __init__(self, layer: Any) -> None:
        self.weights = dict(layer.named_parameters())
        self._layer, self._attention, self._feed = layer, layer.self_attn, layer.mlp
        self._o, self._down = self._attention.o_proj, self._feed.down_proj
        self._attention.o_proj = self._feed.down_proj = nn.Identity()  # they end before their last linear

    def enter(self, site: int, hidden: Tensor, x: Tensor, around: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if site == 0:
            return hidden, self._layer.input_layernorm(hidden)
        if site == 1:
            return hidden, self._attention(hidden_states=x, **around)[0]
        if site == 2:
            hidden = hidden + self._o(x)
            return hidden, self._layer.post_attention_layernorm(hidden)
        return hidden, self._feed(x)

    def leave(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden + self._down(x)
