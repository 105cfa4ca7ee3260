"""benchmarks.multimodal_accuracy: transformers and a file are asked the same, and what is wrong counts as wrong."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import multimodal_accuracy
from benchmarks.multimodal_accuracy import by_file, main
from checkpoints.errors import BadInput
from checkpoints.source import EMBEDDED_MULTIMODAL, resolve
from export.pte import export_pte
from tests.tools import need

need("media", [name for name in ("PIL", "soundfile", "soxr") if find_spec(name) is None], "uv sync --extra")
need("dev", [name for name in ("torchvision", "peft") if find_spec(name) is None], "uv sync --group")

from checkpoints.tiny_examples import example_exercises  # noqa: E402
from checkpoints.tiny_exercises import Exercise  # noqa: E402

PICTURES = 4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "tiny.pte"
    export_pte(EMBEDDED_MULTIMODAL, out=out, verify=False)
    return out


@pytest.fixture(scope="module")
def examples() -> list[Exercise]:
    return example_exercises(resolve(EMBEDDED_MULTIMODAL).folder / "examples")


def test_everyone_is_asked_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without espeak-ng, whose words take most of the time."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main([str(file), "--pictures", str(PICTURES), "--json"]) == 0
    told, progress = capsys.readouterr()
    assert "espeak-ng is missing" in progress
    results = json.loads(told)["results"]
    assert [result["who"] for result in results] == ["transformers, float32", "transformers, bfloat16", "tiny.pte"]
    asked = [{kind: count["of"] for kind, count in result["kinds"].items()} for result in results]
    assert asked[0] == asked[1] == asked[2]
    assert asked[0]["colour"] == asked[0]["all"] == PICTURES and asked[0]["word"] == 3
    assert asked[0]["shape"] + asked[0]["digit"] == PICTURES
    assert {"spoken colour", "spoken shape", "spoken digit"} < asked[0].keys()
    for result in results:
        counts = result["kinds"].values()
        assert sum(count["right"] for count in counts) >= 0.8 * sum(count["of"] for count in counts), result


def test_a_file_answers_the_examples_and_a_wrong_answer_is_wrong(file: Path, examples: list[Exercise]) -> None:
    assert sum(by_file(file, examples)) >= len(examples) - 1
    spoilt = [each._replace(turns=((each.turns[0][0], each.turns[0][1] + " Yes."),)) for each in examples[:3]]
    assert by_file(file, spoilt) == [False] * 3


def test_a_table_has_a_row_for_each_kind(
    file: Path, examples: list[Exercise], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = [True, False]
    monkeypatch.setattr(multimodal_accuracy, "_exercises", lambda *_: examples[:2])
    monkeypatch.setattr(multimodal_accuracy, "_by_transformers", lambda *_: right)
    monkeypatch.setattr(multimodal_accuracy, "by_file", lambda *_: [True, True])
    assert main([str(file)]) == 0
    told = capsys.readouterr().out
    assert "tiny.pte" in told and "50.0%" in told and "100.0%" in told


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--pictures 0 is not at least 1"):
        main(["--pictures", "0"])
    with pytest.raises(BadInput, match=r"phi4-tiny is no checkpoint of checkpoints\.train_tiny_phi4mm"):
        main(["--checkpoint", "phi4-tiny"])
    with pytest.MonkeyPatch.context() as patched, pytest.raises(BadInput, match="none.pte does not exist"):
        patched.setattr(multimodal_accuracy, "_by_transformers", None)
        main([str(tmp_path / "none.pte")])
    out = tmp_path / "text.pte"
    export_pte("phi4-tiny", out=out, verify=False)
    with pytest.raises(BadInput, match="text.pte does not take both pictures and sound"):
        by_file(out, [])
