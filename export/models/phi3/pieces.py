"""The pieces of the Phi-3 decoder that XNNPACK computes: three a layer, and the head.

They stand for `Attention.project`, `Attention.finish`, `FeedForward.project` and `Transformer.head` of
`export.models.phi3.decoder`. wq, wk and wv are one piece so that their input is quantized once; the residuals are in
the pieces to spare activations. Weights are called by the attribute's name behind a prefix, "layers.0.attention.wq".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from export.models.family import Piece
from export.models.phi3.layout import layout
from export.quantization.recipe import Recipe, Storage
from export.xnnpack.drawing import Blobs, Drawing

Outputs = Callable[..., tuple[Tensor, ...]]  # of `Piece`


def make_pieces(config: ModelConfig, recipe: Recipe, chunk: int, logits: int | None) -> dict[str, Piece]:
    """project, finish, feed and head, for calls of up to `chunk` tokens; `logits` as of `Transformer`.

    A graph is drawn once for each way that its weights are stored.
    """
    kv, size = config.num_key_value_heads, config.head_dim
    heads, sources = config.num_attention_heads // kv, layout(config)

    def piece(draw: Callable[..., Drawing], columns: dict[str, int], outputs: Outputs) -> Piece:
        drawn = cache(lambda *storages: Blobs(draw(config, chunk, *storages).graph))

        def blobs(prefix: str) -> Blobs:
            found = (recipe.storage(sources[f"{prefix}{name}.weight"].name, n) for name, n in columns.items())
            return drawn(*found)

        return Piece(blobs, outputs)

    def head(config: ModelConfig, chunk: int, output: Storage) -> Drawing:
        return _head(config, [] if logits == 1 else [min(logits or chunk, chunk)], output)

    def projected(x: Tensor) -> tuple[Tensor, ...]:
        return x.new_empty(kv, x.shape[1], heads + 1, size), x.new_empty(kv, x.shape[1], 1, size)

    def like_residual(x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(residual),)

    def logits_of(x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_empty(*x.shape[:-1], config.vocab_size),)

    hidden = config.hidden_size
    return {
        "project": piece(_project, dict.fromkeys(("wq", "wk", "wv"), hidden), projected),
        "finish": piece(_finish, {"wo": config.q_dim}, like_residual),
        "feed": piece(_feed, {"w1": hidden, "w3": hidden, "w2": config.intermediate_size}, like_residual),
        "head": piece(head, {"output": hidden}, logits_of),
    }


def _project(config: ModelConfig, chunk: int, wq: Storage, wk: Storage, wv: Storage) -> Drawing:
    heads, kv, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    drawing = Drawing()
    x = drawing.input([1, chunk, config.hidden_size])
    drawn = []
    for name, count, storage in (("wq", heads, wq), ("wk", kv, wk), ("wv", kv, wv)):
        y = drawing.linear(x, count * size, name, storage)
        drawn.append(drawing.reshape(y, (0, kv, count // kv, size), [chunk, kv, count // kv, size]))
    qk = drawing.concatenate(drawn[0], drawn[1], axis=2)
    for by_token in (qk, drawn[2]):
        drawing.output(drawing.transpose(by_token, [1, 0, 2, 3]))
    return drawing


def _finish(config: ModelConfig, chunk: int, wo: Storage) -> Drawing:
    heads, kv, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    drawing = Drawing()
    by_token = drawing.value([chunk, kv, heads // kv, size])
    attended = drawing.input([kv, chunk, heads // kv, size])
    drawing.transpose(attended, [1, 0, 2, 3], to=by_token)
    flat = drawing.reshape(by_token, (1, 0, heads * size), [1, chunk, heads * size])
    y = drawing.linear(flat, config.hidden_size, "wo", wo)
    drawing.output(drawing.add(drawing.input([1, chunk, config.hidden_size]), y))
    return drawing


def _feed(config: ModelConfig, chunk: int, w1: Storage, w3: Storage, w2: Storage) -> Drawing:
    drawing = Drawing()
    x = drawing.input([1, chunk, config.hidden_size])
    gate = drawing.silu(drawing.linear(x, config.intermediate_size, "w1", w1))
    up = drawing.linear(x, config.intermediate_size, "w3", w3)
    y = drawing.linear(drawing.multiply(gate, up), config.hidden_size, "w2", w2)
    drawing.output(drawing.add(drawing.input([1, chunk, config.hidden_size]), y))
    return drawing


def _head(config: ModelConfig, rows: list[int], output: Storage) -> Drawing:
    drawing = Drawing()
    x = drawing.input([1, *rows, config.hidden_size])
    drawing.output(drawing.linear(x, config.vocab_size, "output", output))
    return drawing
