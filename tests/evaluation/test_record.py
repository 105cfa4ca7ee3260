"""What `--save` leaves beside a file: one document that keeps to its schema, of this file's bytes and no other's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import BadInput
from checkpoints.files import sha256
from export import evaluate as door
from export.evaluation.record import evaluation_path, read_evaluation, save_evaluation, tasks_part

FLAGS = ["--checkpoint", "phi4-tiny", "--window", "64", "--limit", "1", "--save", "--json"]
FOUND = {  # as lm-evaluation-harness gives it
    "results": {
        "arc": {
            "alias": "arc",
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
            "exact_match,strict": 1,
            "exact_match_stderr,strict": "N/A",
            "bits,none": float("nan"),
        }
    },
    "n-samples": {"arc": {"original": 24, "effective": 6}},
    "versions": {"arc": 1.0},
    "n-shot": {"arc": 5},
}


@pytest.fixture
def pte(tiny_pte: Path, tmp_path: Path) -> Path:
    """A copy that results may be put beside."""
    return Path(shutil.copytree(tiny_pte.parent, tmp_path / "folder")) / tiny_pte.name


def test_text_and_tasks_are_one_document(pte: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_evaluation(pte) is None
    save_evaluation(pte, tasks=tasks_part(FOUND, "0.4.13", 6, chat=True))
    assert door.main([str(pte), "phi4-tiny", *FLAGS]) == 0
    printed = json.loads(capsys.readouterr().out)
    document = read_evaluation(pte)
    assert document is not None and evaluation_path(pte).name == "tiny.evaluation.json"
    assert document["file"] == {"bytes": pte.stat().st_size, "sha256": sha256(pte)}
    found = printed["models"][0]
    assert (
        document["perplexity"]["quality"] == found["quality"]
        and document["perplexity"]["by_text"] == found["by_text"]
    )
    assert document["perplexity"]["control"]["passed"] and document["perplexity"]["reference"] == "phi4-tiny"
    assert document["tasks"]["arc"] == {
        "harness": "0.4.13",
        "version": 1.0,
        "samples": 6,
        "limit": 6,
        "shots": 5,
        "chat": True,
        "metrics": {"acc": {"value": 0.5, "error": 0.1}, "exact_match,strict": {"value": 1, "error": None}},
        "control": None,
    }
    before = evaluation_path(pte).read_bytes()
    assert door.main([str(pte), "phi4-tiny", *FLAGS]) == 0
    assert evaluation_path(pte).read_bytes() == before
    other = {"results": {"other": {"acc,none": 1.0}}}
    save_evaluation(pte, tasks=tasks_part(other, "0.4.13", None, chat=False))
    again = read_evaluation(pte)
    assert again is not None and list(again["tasks"]) == ["arc", "other"]
    assert again["perplexity"] == document["perplexity"]


def test_another_file_of_the_name_has_none(pte: Path) -> None:
    save_evaluation(pte, tasks=tasks_part(FOUND, "0.4.13", 6, chat=False))
    pte.write_bytes(pte.read_bytes() + b"\0" * 16)
    assert read_evaluation(pte) is None
    save_evaluation(pte, tasks={})
    document = read_evaluation(pte)
    assert document is not None and document["tasks"] == {}


def broken(document: dict[str, Any]) -> dict[str, str]:
    """What may lie under the document's name -> what is said of it."""
    arc = document["tasks"]["arc"]
    wrong = arc | {"metrics": {"acc": {"value": "good", "error": None}}}
    return {
        "not JSON": "is no evaluation, and not replaced by one",
        "[]": "at the document, \\[\\] is not of type 'object'",
        json.dumps({"file": {"name": "tiny.pte"}}): "is no evaluation of format pocketphi-evaluation/1",
        json.dumps(document | {"schema": "pocketphi-evaluation/2"}): "at schema",
        json.dumps(document | {"tasks": {"arc": wrong}}): "at tasks.arc.metrics.acc.value, 'good' is not of type",
        json.dumps(document).replace("0.5", "NaN"): "NaN is no number of JSON",
    }


def test_what_is_something_else_is_kept(pte: Path) -> None:
    path = save_evaluation(pte, tasks=tasks_part(FOUND, "0.4.13", 6, chat=False))
    for text, sentence in broken(json.loads(path.read_bytes())).items():
        path.write_text(text)
        for call in (
            lambda: read_evaluation(pte),
            lambda: save_evaluation(pte),
            lambda: door.main([str(pte), *FLAGS]),
        ):
            with pytest.raises(BadInput, match=sentence):
                call()
        assert path.read_text() == text
    path.unlink()
    path.mkdir()
    with pytest.raises(BadInput, match="is a folder, not a file"):
        door.main([str(pte), *FLAGS])
    with pytest.raises(BadInput, match="--save keeps numbers beside a .pte, and phi4-tiny is none"):
        door.main(["phi4-tiny", *FLAGS])
