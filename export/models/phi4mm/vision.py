"""The encoder of pictures (SigLIP) and its projector: one crop at a time, as modules around XNNPACK's pieces.

Shapes: N patches of a crop, P along its side; D hidden size, H heads of E; T text model's hidden size. As in
transformers' `Phi4MultimodalImageEmbedding` (5.23) the features are those before the layers that nothing uses, and
pairs of patches are averaged both ways. Projecting a token commutes with putting tokens in order, so crops are
projected one by one, and separators by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from checkpoints.phi4mm_config import Vision
from export.models.family import Call, Method, Piece
from export.models.modules import LayerNorm, Numbers, Table, Vector
from export.models.phi3.pieces import Stored, make_piece
from export.xnnpack.drawing import GELU_TANH, Drawing

MASKED = 1e9  # taken from the scores of patches that are padding
BELOW_ONE = 1.0 - 1e-6  # as transformers has it


class Crop(nn.Module):
    """pixels [1, 3, side, side] and valid, its rows and columns of patches, int64 [2], to tokens [1, (P/2)^2, T]."""

    def __init__(self, vision: Vision, layers: int, call: Call) -> None:
        super().__init__()
        self.side = vision.patches
        self.layers = nn.ModuleList(Layer(vision, i, call) for i in range(layers))
        self.positions = Table(self.side**2, vision.hidden_size)
        self.numbers = Numbers((vision.hidden_size // vision.num_attention_heads) ** -0.5, *GELU_TANH)
        self.patch, self.pool = call("picture_patch", "vision."), call("picture_pool", "vision.projector.")

    def forward(self, pixels: Tensor, valid: Tensor) -> Tensor:
        steps, size = torch.arange(self.side, dtype=torch.float32), valid.to(torch.float32)
        rows, columns = size[0:1], size[1:2]
        inside = (steps < rows).float().unsqueeze(1) * (steps < columns).float().unsqueeze(0)
        index = self._stretched(steps, rows).unsqueeze(1) * self.side + self._stretched(steps, columns).unsqueeze(0)
        return self.encode(pixels, (index * inside).to(torch.int64), (inside - 1.0) * MASKED)

    def encode(self, pixels: Tensor, index: Tensor, bias: Tensor) -> Tensor:
        """`index` [P, P]: of each patch's position; `bias` [P, P] is added to the scores of a patch as key."""
        scale, *gelu = self.numbers()
        h = self.patch(pixels, self.positions(index))
        for layer in self.layers:
            h = layer(h, bias, scale, gelu)
        result: Tensor = self.pool(h)
        return result

    def _stretched(self, steps: Tensor, count: Tensor) -> Tensor:
        """Positions of `count` patches, stretched over all, as NaViT has it."""
        return torch.floor(torch.clamp(steps * (1.0 / count), max=BELOW_ONE) * self.side)


class Picture(Crop):
    """pixels [1, 3, side, side] of a picture that is one crop to all its tokens [1, 2 P/2 (P/2 + 1) + 1, T]."""

    def __init__(self, vision: Vision, layers: int, call: Call) -> None:
        super().__init__(vision, layers, call)
        self.divider, self.separator = Vector(vision.hidden_size), Vector(vision.hidden_size)
        self.project = call("picture_projector", "vision.projector.")

    def forward(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        index = torch.arange(0, self.side**2, self.side).unsqueeze(1) + torch.arange(self.side).unsqueeze(0)
        tokens = self.encode(pixels, index, torch.zeros(self.side, self.side))
        every = torch.cat([tokens, self.project(_stacked(self))], dim=1)
        return every.index_select(1, torch.tensor(self._order()))

    def _order(self) -> list[int]:
        """Of tokens, the divider behind them and the separator: the crop's rows, each with its end, twice."""
        half = self.side // 2
        divider = half * half
        lines = [token for row in range(half) for token in (*range(row * half, (row + 1) * half), divider + 1)]
        return [*lines, divider, *lines]


class Separators(nn.Module):
    """To [1, 2, T]: what stands before the global view of a picture, and what ends each row of tokens."""

    def __init__(self, vision: Vision, call: Call) -> None:
        super().__init__()
        self.divider, self.separator = Vector(vision.hidden_size), Vector(vision.hidden_size)
        self.project = call("picture_projector", "vision.projector.")

    def forward(self) -> Tensor:
        result: Tensor = self.project(_stacked(self))
        return result


def _stacked(module: Picture | Separators) -> Tensor:
    return torch.stack([module.divider(), module.separator()]).unsqueeze(0)


class Layer(nn.Module):
    """h [1, N, D]: attention of all patches to those inside, and a feed-forward, each with its residual."""

    def __init__(self, vision: Vision, number: int, call: Call) -> None:
        super().__init__()
        self.norm1, self.norm2 = (LayerNorm(vision.hidden_size, vision.layer_norm_eps) for _ in range(2))
        self.attend, self.feed = (
            call(piece, f"vision.layers.{number}.") for piece in ("picture_attend", "picture_feed")
        )

    def forward(self, h: Tensor, bias: Tensor, scale: Tensor, gelu: Sequence[Tensor]) -> Tensor:
        h = self.attend(self.norm1(h), h, bias, scale)
        result: Tensor = self.feed(self.norm2(h), h, *gelu)
        return result


def methods(vision: Vision, call: Call) -> list[Method]:
    """vision_encoder, vision_crop and vision_separators."""
    pixels = torch.zeros(1, 3, vision.image_size, vision.image_size)
    valid = torch.full((2,), vision.patches)
    layers = vision.used_layers
    return [
        Method("vision_encoder", lambda count: Picture(vision, count, call), layers, (pixels,), prefix="vision."),
        Method("vision_crop", lambda count: Crop(vision, count, call), layers, (pixels, valid), prefix="vision."),
        Method("vision_separators", lambda _: Separators(vision, call), 0, (), prefix="vision."),
    ]


def make_pieces(vision: Vision, text: int, stored: Stored) -> dict[str, Piece]:
    """picture_patch, picture_attend, picture_feed, picture_pool and picture_projector."""
    hidden, patches, half = vision.hidden_size, vision.patches**2, vision.patches // 2

    def like_second(x: Tensor, h: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(h),)

    def patched(x: Tensor, placed: Tensor) -> tuple[Tensor, ...]:
        return (placed.new_empty(1, patches, hidden),)

    def pooled(x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_empty(1, half * half, text),)

    return {
        "picture_patch": make_piece(lambda here: _patch(vision, here), stored, patched),
        "picture_attend": make_piece(lambda here: _attend(vision, here), stored, like_second),
        "picture_feed": make_piece(lambda here: _feed(vision, here), stored, like_second),
        "picture_pool": make_piece(lambda here: _pool(vision, text, here), stored, pooled),
        "picture_projector": projector(2, hidden, text, stored),
    }


def _patch(vision: Vision, stored: Stored) -> Drawing:
    hidden, patches, columns = vision.hidden_size, vision.patches**2, 3 * vision.patch_size**2
    side, pixels = vision.patches, vision.patch_size
    patch = Drawing()
    x = patch.input([1, 3, vision.image_size, vision.image_size])
    x = patch.reshape(x, (3, side, pixels, side, pixels), [3, side, pixels, side, pixels])
    x = patch.transpose(x, [1, 3, 0, 2, 4])
    x = patch.reshape(x, (1, patches, columns), [1, patches, columns])
    x = patch.linear(x, hidden, "patch", stored("patch", columns), bias=True)
    placed = patch.reshape(patch.input([side, side, hidden]), (1, patches, hidden), [1, patches, hidden])
    patch.output(patch.add(placed, x))
    return patch


def _attend(vision: Vision, stored: Stored) -> Drawing:
    hidden, side, patches = vision.hidden_size, vision.patches, vision.patches**2
    heads, size = vision.num_attention_heads, hidden // vision.num_attention_heads
    attend = Drawing()
    x, h, bias = (attend.input(dims) for dims in ([1, patches, hidden], [1, patches, hidden], [side, side]))
    bias, scale = attend.reshape(bias, (1, 1, patches), [1, 1, patches]), attend.input([1])

    def linear(x: int, name: str) -> int:
        return attend.linear(x, hidden, name, stored(name, hidden), bias=True)

    q, k, v = (
        attend.reshape(linear(x, name), (patches, heads, size), [patches, heads, size]) for name in ("wq", "wk", "wv")
    )
    q = attend.multiply(attend.transpose(q, [1, 0, 2]), scale)
    scores = attend.add(bias, attend.matmul(q, attend.transpose(k, [1, 2, 0])))
    attended = attend.matmul(attend.softmax(scores), attend.transpose(v, [1, 0, 2]))
    flat = attend.reshape(attend.transpose(attended, [1, 0, 2]), (1, patches, hidden), [1, patches, hidden])
    attend.output(attend.add(h, linear(flat, "wo")))
    return attend


def _feed(vision: Vision, stored: Stored) -> Drawing:
    hidden, inner, patches = vision.hidden_size, vision.intermediate_size, vision.patches**2
    feed = Drawing()
    x, h, linear, cubic = (feed.input(dims) for dims in ([1, patches, hidden], [1, patches, hidden], [1], [1]))
    inside = feed.gelu_tanh(feed.linear(x, inner, "fc1", stored("fc1", hidden), bias=True), linear, cubic)
    feed.output(feed.add(h, feed.linear(inside, hidden, "fc2", stored("fc2", inner), bias=True)))
    return feed


def _pool(vision: Vision, text: int, stored: Stored) -> Drawing:
    hidden, side, patches, half = vision.hidden_size, vision.patches, vision.patches**2, vision.patches // 2
    pool = Drawing()
    x = pool.reshape(pool.input([1, patches, hidden]), (1, side, side, hidden), [1, side, side, hidden])
    x = pool.reshape(pool.average(x), (1, half * half, hidden), [1, half * half, hidden])
    _project(pool, x, text, stored)
    return pool


def projector(tokens: int, columns: int, text: int, stored: Stored) -> Piece:
    """x [1, S, columns] to [1, S, T] by two linears, `up` and `down`, for up to so many tokens."""

    def draw(here: Stored) -> Drawing:
        drawing = Drawing()
        _project(drawing, drawing.input([1, tokens, columns]), text, here)
        return drawing

    return make_piece(draw, stored, lambda x: (x.new_empty(1, x.shape[1], text),))


def _project(drawing: Drawing, x: int, text: int, stored: Stored) -> None:
    columns = drawing.dims[x][-1]
    x = drawing.gelu(drawing.linear(x, text, "up", stored("up", columns), bias=True))
    drawing.output(drawing.linear(x, text, "down", stored("down", text), bias=True))
