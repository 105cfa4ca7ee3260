"""A picture to the crops that a vision encoder takes, and the encoder's features to the picture's tokens.

Dynamic HD tiling, as in transformers' `Phi4MultimodalImageProcessor` (5.23): the picture is scaled onto a whole
number of square crops and padded with white on the right and below; a global view of all of it goes before them.
A picture's tokens are its own rows, each with a separator at its end, a divider, and the rows of the global view.
Knows pixels and sizes; nothing of files, and of an encoder only the shape of its features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checkpoints.errors import BadInput
from export.media.picture_files import resize
from export.media.settings import ImageSettings

MIN_SIDE = 10  # pixels of the scaled picture: the original refuses what is narrower
CUBIC = np.float32(-0.75)  # the coefficient of torch's bicubic kernel
WHITE = 255


@dataclass(frozen=True)
class Tiling:
    """Where a picture lies on its crops; all of it follows from the picture's size."""

    columns: int  # of crops
    rows: int
    width: int  # pixels of the scaled picture
    height: int
    valid: tuple[tuple[int, int], ...]  # rows and columns of patches that hold picture, by crop, global view first
    token_rows: int  # of the picture, without the global view
    token_columns: int  # without the separator
    tokens: int  # with separators, divider and global view


@dataclass(frozen=True)
class Picture:
    """What an encoder needs of one picture."""

    crops: np.ndarray  # float32 [1 + rows * columns, 3, crop, crop], the global view first, then row by row
    tiling: Tiling


def prepare(pixels: np.ndarray, settings: ImageSettings, name: str = "the picture") -> Picture:
    """Crops of a picture, uint8 [height, width, 3], normalized by the settings' mean and std."""
    plan = tile(pixels.shape[1], pixels.shape[0], settings, name)
    side = settings.crop
    canvas = np.full((plan.rows * side, plan.columns * side, 3), WHITE, np.uint8)
    canvas[: plan.height, : plan.width] = resize(pixels, plan.width, plan.height)
    crops = np.empty((1 + plan.rows * plan.columns, 3, side, side), np.float32)
    crops[0] = _bicubic(canvas, side).transpose(2, 0, 1)
    for number in range(1, len(crops)):
        row, column = divmod(number - 1, plan.columns)
        crop = canvas[row * side : (row + 1) * side, column * side : (column + 1) * side]
        crops[number] = crop.transpose(2, 0, 1)
    # On the global view too: interpolation is linear, and its weights sum to one.
    crops -= np.float32(settings.mean * WHITE)
    crops /= np.float32(settings.std * WHITE)
    return Picture(crops, plan)


def tile(width: int, height: int, settings: ImageSettings, name: str = "the picture") -> Tiling:
    """Crops, valid patches and tokens of a picture of so many pixels; BadInput where it is too narrow."""
    columns, rows = _crops(width, height, settings)
    full_width, full_height = columns * settings.crop, rows * settings.crop
    across, down = full_width / width, full_height / height
    scaled = (full_width, int(height * across)) if across < down else (int(width * down), full_height)
    if min(scaled) < MIN_SIDE:
        raise BadInput(
            f"{name} is {width} x {height} pixels: too narrow, scaled to its crops it is {scaled[0]} x {scaled[1]}, "
            f"less than {MIN_SIDE} pixels on a side"
        )
    grid, pool = settings.grid, settings.pool
    patch_columns = columns * grid - (full_width - scaled[0]) // settings.patch
    patch_rows = rows * grid - (full_height - scaled[1]) // settings.patch
    own = [
        (min(max(patch_rows - row * grid, 0), grid), min(max(patch_columns - column * grid, 0), grid))
        for row in range(rows)
        for column in range(columns)
    ]
    token_rows, token_columns = math.ceil(patch_rows / pool), math.ceil(patch_columns / pool)
    tokens = token_rows * (token_columns + 1) + 1 + settings.pooled * (settings.pooled + 1)
    return Tiling(columns, rows, *scaled, ((grid, grid), *own), token_rows, token_columns, tokens)


def masks(tiling: Tiling, settings: ImageSettings) -> np.ndarray:
    """The patches that hold picture: bool [crops, grid, grid], the global view first."""
    found = np.zeros((len(tiling.valid), settings.grid, settings.grid), bool)
    for mask, (rows, columns) in zip(found, tiling.valid, strict=True):
        mask[:rows, :columns] = True
    return found


def merge(
    features: np.ndarray, tiling: Tiling, settings: ImageSettings, *, separator: np.ndarray, divider: np.ndarray
) -> np.ndarray:
    """Features of the crops, [1 + rows * columns, pooled * pooled, D], to the picture's tokens [tokens, D].

    `separator` [D] ends each row of tokens (the model's `sub_img_feature_extensor`); `divider` [D] stands before
    the global view (`global_img_feature_extensor`). Whether all are projected, or none, makes no difference here.
    """
    pooled, width = settings.pooled, features.shape[-1]
    expected = (len(tiling.valid), pooled * pooled, width)
    if features.shape != expected:
        raise ValueError(f"features have shape {features.shape}, this picture's {expected}")
    squares = features.reshape(-1, pooled, pooled, width)
    whole = squares[1:].reshape(tiling.rows, tiling.columns, pooled, pooled, width).transpose(0, 2, 1, 3, 4)
    whole = whole.reshape(tiling.rows * pooled, tiling.columns * pooled, width)
    parts: Sequence[np.ndarray] = (
        _lines(whole[: tiling.token_rows, : tiling.token_columns], separator),
        divider.reshape(1, width),
        _lines(squares[0], separator),
    )
    return np.concatenate(parts)


def _lines(tokens: np.ndarray, separator: np.ndarray) -> np.ndarray:
    """[rows, columns, D] to [rows * (columns + 1), D], the separator after each row."""
    width = tokens.shape[-1]
    ends = np.broadcast_to(separator.reshape(1, 1, width), (len(tokens), 1, width))
    return np.concatenate([tokens, ends], axis=1).reshape(-1, width)


def _crops(width: int, height: int, settings: ImageSettings) -> tuple[int, int]:
    """Columns and rows: as many as cover the picture, else the shape nearest to it of at most `max_crops`.

    Of two shapes equally near the larger wins if the picture has more than half of its pixels.
    """
    columns, rows = math.ceil(width / settings.crop), math.ceil(height / settings.crop)
    if columns * rows <= settings.max_crops:
        return columns, rows
    sides = range(1, settings.max_crops + 1)
    shapes = sorted(
        ((i, j) for i in sides for j in sides if i * j <= settings.max_crops), key=lambda shape: shape[0] * shape[1]
    )
    best, distance = (1, 1), math.inf
    for shape in shapes:
        other = abs(width / height - shape[0] / shape[1])
        if other < distance:
            best, distance = shape, other
        elif other == distance and width * height > 0.5 * settings.crop**2 * shape[0] * shape[1]:
            best = shape
    return best


def _bicubic(canvas: np.ndarray, side: int) -> np.ndarray:
    """uint8 [height, width, 3] to float32 [side, side, 3], not smoothed.

    As torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False): of a large picture most
    pixels are not looked at. Rows first, for they lie together in memory.
    """
    rows, row_weights = _cubic(canvas.shape[0], side)
    columns, column_weights = _cubic(canvas.shape[1], side)
    lines = np.zeros((side, canvas.shape[1], 3), np.float32)
    found = np.zeros((side, side, 3), np.float32)
    for tap in range(4):
        lines += canvas[rows[:, tap]] * row_weights[:, tap, None, None]
    for tap in range(4):
        found += lines[:, columns[:, tap]] * column_weights[:, tap, None]
    return found


def _cubic(size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `side` outputs: the four of `size` inputs it is made of, int [side, 4], and float32 weights."""
    place = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(size / side) - np.float32(0.5)
    first = np.floor(place)
    past = place - first

    def near(x: np.ndarray) -> np.ndarray:
        return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC

    inputs = np.clip(first.astype(int)[:, None] + np.arange(-1, 3), 0, size - 1)
    return inputs, np.stack([far(past + 1), near(past), near(1 - past), far(2 - past)], axis=1)
