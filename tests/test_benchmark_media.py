"""benchmarks.media: ours and transformers' do the same work on the same files, and what fails is a sentence."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import media
from checkpoints.errors import BadInput
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")
need("dev", ["torchvision"] if find_spec("torchvision") is None else [], "uv sync --group")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "PHOTO", (600, 400))
    monkeypatch.setattr(media, "RECORDING_S", 3)


def test_both_do_the_same_work(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = {"process_s": 1.0, "peak_private_bytes": 1e6}
    monkeypatch.setattr(media, "_in_child", lambda who, what, path: media.trial(who, what, path) | numbers)
    assert media.main(["--rounds", "2", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    told = {(result["what"], result["who"]): result["median"]["tokens"] for result in results}
    assert told["photo", "ours"] == told["photo", "transformers"] == 673
    assert told["recording", "ours"] == told["recording", "transformers"] == 38
    assert all(len(result["trials"]) == 2 and result["median"]["ms"] > 0 for result in results)
    assert media.main(["--rounds", "1"]) == 0
    assert "recording" in capsys.readouterr().out


def test_a_trial_runs_in_a_process_of_its_own(small: None, tmp_path: Path) -> None:
    found = media._in_child("ours", "photo", media._photo(tmp_path))
    assert found["tokens"] == 673 and found["peak_private_bytes"] > 1e6 and found["process_s"] > 0


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--rounds 0 is not at least 1"):
        media.compare(0)
    with pytest.raises(BadInput, match=r"the photo could not be measured with ours \(exit code 2\): .* is empty"):
        (path := tmp_path / "photo.jpg").write_bytes(b"")
        media._in_child("ours", "photo", path)
