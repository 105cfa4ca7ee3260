"""The decoder as a method of a file, with what XNNPACK computes as calls of pieces."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from checkpoints.config import ModelConfig
from export.models.family import Call, Method, Sizes
from export.models.phi3.decoder import Transformer


def forward(config: ModelConfig, sizes: Sizes, call: Call) -> Method:
    """tokens [1, S] int64 and input_pos [1] int64 to logits, as of `Transformer`."""
    tokens = torch.zeros(1, min(3, sizes.chunk), dtype=torch.long)
    return decoder_method("forward", config, sizes, call, tokens, Transformer)


def decoder_method(
    name: str, config: ModelConfig, sizes: Sizes, call: Call, example: torch.Tensor, kind: type[Transformer]
) -> Method:
    """A method of a decoder that takes `example`, its second dimension dynamic, and input_pos [1] int64."""

    def module(layers: int) -> nn.Module:
        shallow = dataclasses.replace(config, num_hidden_layers=layers)
        decoder = kind(shallow, sizes.context, sizes.cache_dtype, sizes.logits)
        call_pieces(decoder, call)
        return decoder

    length = torch.export.Dim("length", min=1, max=sizes.chunk)
    inputs = (example, torch.zeros(1, dtype=torch.long))
    return Method(name, module, config.num_hidden_layers, inputs, ({1: length}, None))


def call_pieces(decoder: Transformer, call: Call) -> None:
    """Replace methods of the decoder by `call(piece, prefix of its weights)` and drop their linears, in place."""
    for i, layer in enumerate(decoder.layers):
        block: Any = layer
        attention, feed_forward = block.attention, block.feed_forward
        attention.project = call("project", f"layers.{i}.attention.")
        attention.finish = call("finish", f"layers.{i}.attention.")
        feed_forward.project = call("feed", f"layers.{i}.feed_forward.")
        del attention.wq, attention.wk, attention.wv, attention.wo
        del feed_forward.w1, feed_forward.w2, feed_forward.w3
    decoder.head = call("head", "")  # type: ignore[method-assign]
    del decoder.output
