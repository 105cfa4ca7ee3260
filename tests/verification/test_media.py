"""A multimodal file whose methods compute something else fails its verification, check by check."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from checkpoints.config import read_config
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from export.engine import encoders
from export.models.modules import Numbers
from export.models.phi4mm import audio, decoder, vision
from export.pte import export_pte
from export.verification import media
from export.verification.extent import SHORT
from export.verification.verify import verify

SIZES: dict[str, Any] = {
    "layers": 1, "vision_layers": 3, "audio_layers": 1, "scale": 8, "hidden": 384, "heads": 6, "kv_heads": 2,
    "intermediate": 768, "vocab": 700,
}  # fmt: skip
FULL, PADDED = "crop of 32 x 32", "crop of 24 x 16"
DECODERS = {f"logits, {mode} decoder" for mode in ("text", "vision", "speech")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("phi4mm") / "mm", "phi4-multimodal", **SIZES)


def judged(folder: Path, out: Path, quantize: bool) -> tuple[set[str], set[str]]:
    """Names of the checks that fail, and of those that pass."""
    export_pte(str(folder), out=out, context=1024, quantize=quantize, verify=False)
    report = verify(out, resolve(str(folder)), SHORT)
    failed = {check.name for check in report.checks if not check.passed}
    return failed, {check.name for check in report.checks} - failed


def of_each(names: set[str]) -> set[str]:
    """Without what else is said of the same logits."""
    return {name for name in names if not name.startswith("media weights")}


@pytest.mark.parametrize("quantize", [True, False], ids=["quantized", "float32"])
def test_one_thing_wrong_in_each_method(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: bool
) -> None:
    """Adapters exchanged; padding seen; divider and separator exchanged; a picture's rows in another order; sound
    beside pictures projected like sound alone."""
    with_adapter, separators, methods = decoder._with_adapter, vision.Separators.forward, audio.methods

    def unprojected(*args: Any) -> list[Any]:
        found = methods(*args)
        for method in found:
            for name in method.copies:
                method.copies[name] = lambda token: token  # type: ignore[index]
        return found

    def exchanged(self: vision.Separators) -> Tensor:
        return separators(self).flip(1)

    other = {"vision": "speech", "speech": "vision"}
    monkeypatch.setattr(decoder, "_with_adapter", lambda adapter: with_adapter(other[adapter]))
    monkeypatch.setattr(vision, "MASKED", 0.0)
    monkeypatch.setattr(vision.Separators, "forward", exchanged)
    order = vision.Picture._order
    monkeypatch.setattr(vision.Picture, "_order", lambda self: order(self)[::-1])
    monkeypatch.setattr(audio, "methods", unprojected)
    failed, passed = judged(folder, tmp_path / "wrong.pte", quantize)
    assert {PADDED, "vision_separators", "vision_encoder", "sound, vision"} <= failed, (failed, passed)
    assert {FULL, "sound, speech", "logits, text decoder"} <= passed, (failed, passed)
    assert {"logits, vision decoder", "logits, speech decoder"} <= failed, (failed, passed)


def test_a_number_wrong_in_each_encoder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale of attention in pictures; whole feed-forwards instead of halves in sound."""
    monkeypatch.setattr(vision, "Numbers", lambda scale, *gelu: Numbers(3 * scale, *gelu))
    monkeypatch.setattr(audio, "Numbers", lambda scale, half: Numbers(scale, 2 * half))
    failed, passed = judged(folder, tmp_path / "wrong.pte", quantize=True)
    assert {FULL, PADDED, "vision_encoder", "sound, vision", "sound, speech"} <= failed, (failed, passed)
    assert {"vision_separators", *DECODERS} <= passed, (failed, passed)


def test_what_ran_is_gone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders before decoders come, and both before the reference: the system has their memory again."""
    path, sessions, found = tmp_path / "mm.pte", list[weakref.ref[Any]](), list[list[bool]]()
    export_pte(str(folder), out=path, context=1024, verify=False)

    class Session(encoders.MediaSession):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            sessions.append(weakref.ref(self._program))

    monkeypatch.setattr(encoders, "MediaSession", Session)
    monkeypatch.setattr(media, "trim", lambda: found.append([one() is None for one in sessions]))
    results = media.run_media(path, media.make_probe(read_config(folder), range(8)))
    assert found == [[True], [True, True]]
    assert {FULL, "sound, vision", "logits, speech"} <= results.keys()
