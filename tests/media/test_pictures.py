"""Crops, masks, counts and merged tokens are transformers'; so is what becomes of a picture's mode."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.errors import BadInput
from export.media.picture_files import resize
from export.media.pictures import masks, merge, prepare, tile
from export.media.settings import ImageSettings

STEP = 2 / 255  # of a pixel, normalized
SIZES = [(448, 448), (449, 300), (1000, 333), (37, 91), (1, 1), (2500, 100), (20000, 300), (300, 5000), (2016, 1512)]


def painted(width: int, height: int) -> Image.Image:
    """Smooth shapes with some noise, as a photo has."""
    rng = np.random.default_rng(width * 31 + height)
    coarse = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_picture_is_prepared_as_transformers_does(size: tuple[int, int], image_processor: Any, images: Any) -> None:
    picture = painted(*size)
    theirs = image_processor(picture, return_tensors="pt")
    ours = prepare(np.asarray(picture), images)
    assert [ours.tiling.tokens] == theirs["num_img_tokens"].tolist()
    shape = ours.tiling.rows * images.crop, ours.tiling.columns * images.crop
    assert [list(shape)] == theirs["image_sizes"].tolist()
    assert np.array_equal(masks(ours.tiling, images), theirs["image_attention_mask"][0].numpy().astype(bool))
    far = np.abs(ours.crops - theirs["image_pixel_values"][0].numpy()) / STEP
    # Pillow and torchvision round the weights of a resizing differently: one step, seldom; cubic weights add to 1.27
    assert far[1:].max() < 1.01 and far[0].max() < 1.7
    assert (far > 0.01).mean() < 0.0015


@pytest.mark.parametrize("size", [(300, 5000), (2016, 1512), (1000, 333)], ids=str)
def test_after_resizing_all_values_are_transformers(size: tuple[int, int], image_processor: Any, images: Any) -> None:
    plan = tile(*size, images)
    scaled = resize(np.asarray(painted(*size)), plan.width, plan.height)
    theirs = image_processor(Image.fromarray(scaled), return_tensors="pt")["image_pixel_values"][0].numpy()
    ours = prepare(scaled, images).crops
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-5 * STEP * 255


@pytest.mark.parametrize("most", [1, 2, 4, 6, 12, 36])
def test_counts_of_any_size_are_transformers(most: int, image_processor: Any, images: ImageSettings) -> None:
    """Of random sizes, and of those whose shape lies just between two of the allowed ones."""
    rng = random.Random(most)
    settings = replace(images, max_crops=most)
    sizes = [(int(10 ** rng.uniform(0, 4.3)), int(10 ** rng.uniform(0, 4.3))) for _ in range(150)]
    for _ in range(150):
        a, b, c, d = (rng.randint(1, 6) for _ in range(4))
        unit = rng.choice((60, 100, 224, 448))
        sizes.append((unit * (a * d + c * b), unit * 2 * b * d))  # the mean of a/b and c/d
    refused = 0
    for width, height in sizes:
        blank = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
        try:
            plan = tile(width, height, settings)
        except BadInput:
            refused += 1
            with pytest.raises(ValueError, match="extreme"):
                image_processor.dynamic_preprocess(blank, images.crop, images.patch, images.grid, max_num=most)
            continue
        image, mask = image_processor.dynamic_preprocess(blank, images.crop, images.patch, images.grid, max_num=most)
        assert (plan.rows * 448, plan.columns * 448) == image.shape[-2:], (width, height)
        pooled = mask_counts(plan.valid[1:], plan.rows, plan.columns)
        assert pooled == (int(mask_rows(mask, 0)), int(mask_rows(mask, 1))), (width, height)
    assert refused < len(sizes) / 2


def mask_rows(mask: torch.Tensor, axis: int) -> int:
    return 0 if mask.device.type == "meta" else int(mask.select(1 - axis, 0).sum())


def mask_counts(valid: Any, rows: int, columns: int) -> tuple[int, int]:
    return sum(valid[row * columns][0] for row in range(rows)), sum(valid[column][1] for column in range(columns))
