"""The apps' vectors are what the code makes now, for transformers' settings, and say what transformers says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints.errors import BadInput
from export.media.settings import AudioSettings, ImageSettings
from export.media.vectors import FILE, main, painted, read, tone


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its place."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return {place: leaf for key, entry in entries for place, leaf in flat(entry, f"{path}/{key}").items()}
    return {path: value}


def test_the_command_makes_the_file_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "again.json")]) == 0
    assert "12 pictures, 6 sounds" in capsys.readouterr().out
    again, kept = (flat(json.loads(path.read_text())) for path in (tmp_path / "again.json", FILE))
    assert again.keys() == kept.keys()
    for place, value in kept.items():
        if isinstance(value, float):  # another processor may round the last digit differently
            assert again[place] == pytest.approx(value, abs=2e-4), place
        else:
            assert again[place] == value, place
    assert FILE.stat().st_size < 200_000


def test_the_settings_are_transformers(images: ImageSettings, audio: AudioSettings) -> None:
    assert read()[1:] == (images, audio)


def test_pictures_are_transformers(image_processor: Any) -> None:
    for case in read()[0]["pictures"]:
        if case["size"][0] * case["size"][1] > 10**6:
            continue
        theirs = image_processor(
            Image.fromarray(painted(*case["size"])), dynamic_hd=case["max_crops"], return_tensors="np"
        )
        assert theirs["num_img_tokens"] == [case["tokens"]]
        for *place, value in case["pixels"]:
            assert abs(theirs["image_pixel_values"][0][tuple(place)] - value) < 2.1 / 255


def test_sounds_are_transformers(feature_extractor: Any) -> None:
    for case in read()[0]["sounds"]:
        if case["rate"] != 16000:
            continue
        samples = tone(case["rate"], case["seconds"], case["hertz"], case["loudness"])
        theirs = feature_extractor(samples, sampling_rate=16000, return_tensors="np")
        assert theirs["audio_embed_sizes"].tolist() == [case["tokens"]]
        assert abs(theirs["audio_input_features"][0].mean(dtype=np.float64) - case["mean"]) < 1e-4
        for *place, value in case["values"]:
            assert abs(theirs["audio_input_features"][0][tuple(place)] - value) < 1e-4


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="its folder does not exist"):
        main(["--out", str(tmp_path / "no" / "v.json")])
    (path := tmp_path / "v.json").write_text("{}")
    with pytest.raises(BadInput, match=r"v\.json has no settings to make vectors with: 'images'"):
        read(path)
