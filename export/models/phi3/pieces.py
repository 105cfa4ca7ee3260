"""The pieces of the Phi-3 decoder that XNNPACK computes: three a layer, and the head.

They stand for `Attention.project`, `Attention.finish`, `FeedForward.project` and `Transformer.head` of
`export.models.phi3.decoder`. wq, wk and wv are one piece so that their input is quantized once; the residuals are in
the pieces to spare activations. Weights are called by the attribute's name behind a prefix, "layers.0.attention.wq".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.roles import Rows
from export.models.family import Piece
from export.models.phi3.layout import layout
from export.quantization.recipe import Recipe, Storage
from export.xnnpack.drawing import Blobs, Drawing

Linear = Callable[[Drawing, int, int, str], int]  # drawing, x, rows and the weight's name, to x times the weight
Stored = Callable[[str, int], Storage]  # how the weight of this name in a file, with so many columns, is stored
Outputs = Callable[..., tuple[Tensor, ...]]  # of `Piece`


def stored_by(recipe: Recipe, sources: dict[str, Rows]) -> Stored:
    """As a recipe says; `sources` is the family's layout."""
    return lambda name, columns: recipe.storage(sources[f"{name}.weight"].name, columns)


def make_piece(draw: Callable[[Stored], Drawing], stored: Stored, results: Outputs) -> Piece:
    """A piece whose graph is `draw`n once for each way that its weights are stored.

    What `draw` is given takes names without the prefix of the layer.
    """
    made: dict[tuple[Storage, ...], Blobs] = {}

    def blobs(prefix: str) -> Blobs:
        used: list[Storage] = []

        def stored_here(name: str, columns: int) -> Storage:
            used.append(stored(prefix + name, columns))
            return used[-1]

        drawing = draw(stored_here)
        return made.setdefault(tuple(used), drawing.blobs())

    return Piece(blobs, results)


def plain_linear(stored: Stored) -> Linear:
    def linear(drawing: Drawing, x: int, rows: int, name: str) -> int:
        return drawing.linear(x, rows, name, stored(name, drawing.dims[x][-1]))

    return linear


def make_pieces(config: ModelConfig, recipe: Recipe, chunk: int, logits: int | None) -> dict[str, Piece]:
    """project, finish, feed and head, for calls of up to `chunk` tokens; `logits` as of `Transformer`."""
    stored, results = stored_by(recipe, layout(config)), outputs(config)
    draws: dict[str, Callable[[Stored], Drawing]] = {
        "project": lambda here: draw_project(config, chunk, plain_linear(here)),
        "finish": lambda here: draw_finish(config, chunk, plain_linear(here)),
        "feed": lambda here: draw_feed(config, chunk, plain_linear(here)),
        "head": lambda here: _draw_head(config, chunk, logits, plain_linear(here)),
    }
    return {name: make_piece(draw, stored, results[name]) for name, draw in draws.items()}


def draw_project(config: ModelConfig, chunk: int, linear: Linear) -> Drawing:
    """`Attention.project`."""
    hidden, size, kv = config.hidden_size, config.head_dim, config.num_key_value_heads
    project = Drawing()
    x = project.input([1, chunk, hidden])
    drawn = []
    for name, count in (("wq", config.num_attention_heads), ("wk", kv), ("wv", kv)):
        y = linear(project, x, count * size, name)
        drawn.append(project.reshape(y, (0, kv, count // kv, size), [chunk, kv, count // kv, size]))
    qk = project.concatenate(drawn[0], drawn[1], axis=2)
    for by_token in (qk, drawn[2]):
        project.output(project.transpose(by_token, [1, 0, 2, 3]))
    return project


def draw_finish(config: ModelConfig, chunk: int, linear: Linear) -> Drawing:
    """`Attention.finish`."""
    hidden, size = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    finish = Drawing()
    by_token = finish.value([chunk, kv, heads // kv, size])
    attended = finish.input([kv, chunk, heads // kv, size])
    finish.transpose(attended, [1, 0, 2, 3], to=by_token)
    flat = finish.reshape(by_token, (1, 0, heads * size), [1, chunk, heads * size])
    y = linear(finish, flat, hidden, "wo")
    finish.output(finish.add(finish.input([1, chunk, hidden]), y))
    return finish


def draw_feed(config: ModelConfig, chunk: int, linear: Linear) -> Drawing:
    """`FeedForward.project`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    feed = Drawing()
    x = feed.input([1, chunk, hidden])
    gate = feed.silu(linear(feed, x, inner, "w1"))
    up = linear(feed, x, inner, "w3")
    y = linear(feed, feed.multiply(gate, up), hidden, "w2")
    feed.output(feed.add(feed.input([1, chunk, hidden]), y))
    return feed


def _draw_head(config: ModelConfig, chunk: int, logits: int | None, linear: Linear) -> Drawing:
    head, rows = Drawing(), [] if logits == 1 else [min(logits or chunk, chunk)]
    head.output(linear(head, head.input([1, *rows, config.hidden_size]), config.vocab_size, "output"))
    return head


def outputs(config: ModelConfig) -> dict[str, Outputs]:
    """The results of each piece as empty tensors, from its arguments."""
    kv, size = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // kv

    def projected(x: Tensor) -> tuple[Tensor, ...]:
        return x.new_empty(kv, x.shape[1], group + 1, size), x.new_empty(kv, x.shape[1], 1, size)

    def like_residual(x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(residual),)

    def logits_of(x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_empty(*x.shape[:-1], config.vocab_size),)

    return {"project": projected, "finish": like_residual, "feed": like_residual, "head": logits_of}
