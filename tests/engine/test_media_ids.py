"""Media ids: the layout that the C++ engine has too, spelled out once more."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.engine.media_ids import Encoded, decides, media_ids, mode_of_ids, picture_id, row_of, sound_id
from tests.engine.native import need_compiler


def wanted(kind: int, what: bytes, row: int = 0) -> int:
    digest = int(hashlib.sha256(what).hexdigest()[:10], 16)
    return -1 - (kind * 2**60 + digest * 2**20 + row)


def test_ids_of_pictures_and_sound() -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    samples = np.linspace(-1, 1, 9, dtype=np.float32)
    picture = b"picture" + struct.pack("<QQ", 7, 5) + bytes(range(105))
    assert picture_id(pixels) == picture_id(np.asfortranarray(pixels)) == wanted(1, picture)
    assert picture_id(pixels.reshape(7, 5, 3)) != picture_id(pixels), "the same bytes, another shape"
    sound = b"sound" + struct.pack("<QQ", 8000, 9) + struct.pack("<9f", *samples)
    assert sound_id(samples, 8000, "speech") == wanted(2, sound)
    assert sound_id(samples, 8000, "vision") == wanted(3, sound)
    assert sound_id(samples, 16000, "vision") != sound_id(samples, 8000, "vision")
    first = picture_id(pixels)
    assert media_ids(first, 3) == [wanted(1, picture, row) for row in range(3)]
    assert Encoded(first, 2, 1, False, 0, 0).ids == [first, first - 1]
    assert row_of(first - 1000) == (first, 1000)
    assert -(2**63) <= wanted(3, sound, 2**20 - 1) < 0, "an int64"


def test_the_mode_follows_from_the_ids() -> None:
    picture, sound, beside = (wanted(kind, b"") for kind in (1, 2, 3))
    assert mode_of_ids([1, 2]) == mode_of_ids([]) == "text"
    assert mode_of_ids([1, picture, 2]) == mode_of_ids([beside, 1, picture]) == "vision"
    assert mode_of_ids([1, sound]) == "speech"
    assert [decides(one) for one in (picture, sound, beside)] == [True, True, False]


@pytest.mark.parametrize("engine", ["ours", "wheel"])
def test_both_engines_give_these_ids(engine: Any, multimodal_pte: Path) -> None:
    from export.engine.feeder import open_feeder
    from export.engine.runner import read_facts

    if engine == "ours":
        need_compiler()
    facts = read_facts(multimodal_pte)
    feeder = open_feeder(multimodal_pte, engine, None, 0, media=facts.media, context=facts.context)
    pixels, samples = np.full((30, 40, 3), 7, np.uint8), np.full(900, 0.25, np.float32)
    assert feeder.picture(pixels).first_id == picture_id(pixels)
    for mode in ("speech", "vision"):
        assert feeder.sound(samples, 16000, mode).first_id == sound_id(samples, 16000, mode)
    feeder.close()
