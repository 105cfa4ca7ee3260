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
SIZES = [(448, 448), (449, 300), (1000, 333), (37, 91), (1, 1), (2500, 100), (9000, 300), (300, 5000), (2016, 1512)]


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
def test_counts_of_any_size_are_transformers(
    most: int, image_processor: Any, images: ImageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of random sizes, and of those whose shape lies just between two of the allowed ones."""
    from transformers.models.phi4_multimodal import image_processing_phi4_multimodal as module

    asked: list[Any] = []  # what would be resized, and padded by
    monkeypatch.setattr(module.tvF, "resize", lambda image, size: asked.append(size) or image)
    monkeypatch.setattr(module.tvF, "pad", lambda image, padding, fill: asked.append(padding) or image)
    rng = random.Random(most)
    settings = replace(images, max_crops=most)
    sizes = [(int(10 ** rng.uniform(0, 4.3)), int(10 ** rng.uniform(0, 4.3))) for _ in range(150)]
    for _ in range(150):
        a, b, c, d = (rng.randint(1, 6) for _ in range(4))
        unit = rng.choice((60, 100, 224, 448))
        sizes.append((unit * (a * d + c * b), unit * 2 * b * d))  # the mean of a/b and c/d
    refused = 0
    for width, height in sizes:
        blank = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, height, width)
        numbers = (images.crop, images.patch, images.grid)
        try:
            plan = tile(width, height, settings)
        except BadInput:
            refused += 1
            with pytest.raises(ValueError, match="extreme"):
                image_processor.dynamic_preprocess(blank, *numbers, max_num=most)
            continue
        _, mask = image_processor.dynamic_preprocess(blank, *numbers, max_num=most)
        size, padding = asked[-2:]
        assert (plan.height, plan.width) == tuple(size), (width, height)
        edges = plan.columns * images.crop - plan.width, plan.rows * images.crop - plan.height
        assert [0, 0, *edges] == padding, (width, height)
        own = masks(plan, settings)[1:].reshape(plan.rows, plan.columns, images.grid, images.grid)
        own = own.transpose(0, 2, 1, 3).reshape(plan.rows * images.grid, -1)
        assert np.array_equal(own, mask.numpy().astype(bool)), (width, height)
    assert refused < len(sizes) / 2


def test_counts_that_are_known(images: ImageSettings) -> None:
    """As for the published checkpoint: one crop, 2 rows of 2, 2 rows of 3, 6 rows of 6."""
    crops = [(1, 1), (2, 2), (3, 2), (6, 6)]
    counts = [tile(columns * 448, rows * 448, images).tokens for columns, rows in crops]
    assert counts == [545, 1329, 1841, 9585]


@pytest.mark.parametrize("size", [(448, 448), (1000, 333), (333, 1000), (900, 700)], ids=str)
def test_merged_tokens_are_transformers(size: tuple[int, int], images: ImageSettings) -> None:
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as module
    from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalConfig

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Phi4MultimodalConfig(hidden_size=12, vision_config=small)
    torch.manual_seed(0)
    theirs = module.Phi4MultimodalImageEmbedding(config).eval()
    torch.nn.init.normal_(theirs.sub_img_feature_extensor)
    torch.nn.init.normal_(theirs.global_img_feature_extensor)
    plan = tile(*size, images)
    features = torch.randn(len(plan.valid), images.pooled**2, 8)
    theirs.get_img_features = lambda pixels, attention_mask: features  # type: ignore[method-assign]
    ids = torch.full((1, plan.tokens), config.vision_config.image_token_id)
    sides = torch.tensor([[plan.rows * images.crop, plan.columns * images.crop]])
    with torch.no_grad():
        expected = theirs(
            ids,
            torch.zeros(1, plan.tokens, 12),
            torch.zeros(1, len(plan.valid), 3, 448, 448),
            sides,
            torch.from_numpy(masks(plan, images))[None].float(),
        )
        merged = merge(
            features.numpy(),
            plan,
            images,
            separator=theirs.sub_img_feature_extensor.numpy(),
            divider=theirs.global_img_feature_extensor.numpy(),
        )
        assert merged.shape == (plan.tokens, 8)
        gelu = torch.nn.functional.gelu(theirs.img_projection_up(torch.from_numpy(merged)))
        assert torch.allclose(theirs.img_projection_down(gelu), expected[0], atol=1e-6)


def test_features_of_another_picture_are_an_error(images: ImageSettings) -> None:
    with pytest.raises(ValueError, match=r"\(4, 256, 8\), this picture's \(2, 256, 8\)"):
        blank = np.zeros(8)
        merge(np.zeros((4, 256, 8)), tile(448, 448, images), images, separator=blank, divider=blank)


@pytest.mark.parametrize("size", [(20000, 10), (1, 448), (30000, 15)], ids=str)
def test_what_is_too_narrow_is_refused(size: tuple[int, int], images: ImageSettings) -> None:
    with pytest.raises(BadInput, match=f"photo is {size[0]} x {size[1]} pixels: too narrow, .* less than 10 pixels"):
        tile(*size, images, "photo")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"crop": 450}, "a crop of 450 pixels is not cut evenly into patches of 14 pixels"),
        ({"patch": 0}, "patch is 0, it must be above 0"),
        ({"max_crops": -1}, "max_crops is -1"),
    ],
)
def test_settings_that_cannot_be(images: ImageSettings, changed: dict[str, int], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        replace(images, **changed)
