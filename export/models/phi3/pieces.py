"""The pieces of the Phi-3 decoder that XNNPACK computes: three a layer, and the head.

They stand for `Attention.project`, `Attention.finish`, `FeedForward.project` and `Transformer.head` of
`export.models.phi3.decoder`. wq, wk and wv are one piece so that their input is quantized once; the residuals are in
the pieces to spare activations. Weights are called by the attribute's name behind a prefix, "layers.0.attention.wq".
"""

from __future__ import annotations

import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.roles import Role
from export.models.family import Piece
from export.quantization.recipe import Recipe, Storage
from export.xnnpack.drawing import Blobs, Drawing


def make_pieces(config: ModelConfig, recipe: Recipe, chunk: int, logits: int | None) -> dict[str, Piece]:
    """project, finish, feed and head, for calls of up to `chunk` tokens; `logits` as of `Transformer`."""
    hidden, size = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads

    def storage(role: Role, columns: int) -> Storage:
        return recipe.storage(role, columns)

    project = Drawing()
    x = project.input([1, chunk, hidden])
    drawn = []
    for name, count in (("wq", heads), ("wk", kv), ("wv", kv)):
        y = project.linear(x, count * size, name, storage(Role.LINEAR, hidden))
        drawn.append(project.reshape(y, (0, kv, count // kv, size), [chunk, kv, count // kv, size]))
    qk = project.concatenate(drawn[0], drawn[1], axis=2)
    for by_token in (qk, drawn[2]):
        project.output(project.transpose(by_token, [1, 0, 2, 3]))

    finish = Drawing()
    by_token = finish.value([chunk, kv, heads // kv, size])
    attended = finish.input([kv, chunk, heads // kv, size])
    finish.transpose(attended, [1, 0, 2, 3], to=by_token)
    flat = finish.reshape(by_token, (1, 0, heads * size), [1, chunk, heads * size])
    y = finish.linear(flat, hidden, "wo", storage(Role.LINEAR, heads * size))
    finish.output(finish.add(finish.input([1, chunk, hidden]), y))

    feed = Drawing()
    x = feed.input([1, chunk, hidden])
    inner = config.intermediate_size
    gate = feed.silu(feed.linear(x, inner, "w1", storage(Role.LINEAR, hidden)))
    up = feed.linear(x, inner, "w3", storage(Role.LINEAR, hidden))
    y = feed.linear(feed.multiply(gate, up), hidden, "w2", storage(Role.LINEAR, inner))
    feed.output(feed.add(feed.input([1, chunk, hidden]), y))

    head = Drawing()
    x = head.input([1, hidden] if logits == 1 else [1, min(logits or chunk, chunk), hidden])
    head.output(head.linear(x, config.vocab_size, "output", storage(Role.HEAD, hidden)))

    def projected(x: Tensor) -> tuple[Tensor, ...]:
        return x.new_empty(kv, x.shape[1], heads // kv + 1, size), x.new_empty(kv, x.shape[1], 1, size)

    def like_residual(x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(residual),)

    def logits_of(x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_empty(*x.shape[:-1], config.vocab_size),)

    return {
        "project": Piece(Blobs(project.graph), projected),
        "finish": Piece(Blobs(finish.graph), like_residual),
        "feed": Piece(Blobs(feed.graph), like_residual),
        "head": Piece(Blobs(head.graph), logits_of),
    }
