"""benchmarks.serve: it counts what its clients got, says when something failed, and percentiles are numpy's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import serve
from checkpoints.errors import BadInput
from tests.server.fake import FakeConversation, fake_model, running


def test_percentiles() -> None:
    times = np.random.default_rng(0).integers(1, 200, 999)
    entry = {
        "response_times": {
            f"{ms}.0": int(count) for ms, count in zip(*np.unique(times, return_counts=True), strict=True)
        }
    }
    for share in (0.5, 0.95):
        assert serve.percentile(entry, share) == np.percentile(times, 100 * share, method="inverted_cdf")


def by_fake(monkeypatch: pytest.MonkeyPatch, conversation: FakeConversation) -> None:
    """Have the benchmark talk to a fake."""

    @contextmanager
    def serving(file: Path, parallel: int) -> Iterator[str]:
        with running(fake_model([conversation])) as url:
            yield url

    monkeypatch.setattr(serve, "serving", serving)


def test_rows(served_pte: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = FakeConversation(words=3, pause=0.01)
    by_fake(monkeypatch, conversation)
    flags = ["--parallel", "1", "--clients", "2", "--seconds", "3", "--tokens", "2"]
    assert serve.main([str(served_pte), *flags, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    answers = row["requests"]["answer"]
    assert 0 < answers == row["requests"]["first text"] <= len(conversation.ended) <= answers + 2
    assert row["failures"] == 0 and row["tokens_per_s"] > 0 and row["memory"]["private"] > 0
    assert row["first_ms"][0] <= row["answer_ms"][0] <= row["answer_ms"][1]
    assert len(conversation.asked[-1]) in (2, 4)  # a system prompt and the first or the second question


def test_failures_are_told(
    served_pte: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = FakeConversation()
    conversation.raises = RuntimeError("broken")
    by_fake(monkeypatch, conversation)
    flags = ["--parallel", "1", "--clients", "1", "--seconds", "2"]
    assert serve.main([str(served_pte), *flags]) == 1
    assert "first text, ms" in capsys.readouterr().out


def test_a_soak_of_the_real_one(served_pte: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main([str(served_pte), "--soak", "0.1", "--tokens", "8", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["requests"]["answer"] > 0 and found["failures"] == found["left_running"] == 0
    assert found["last_third_bytes"] > 1e6


@pytest.mark.parametrize(
    ("flags", "sentence"), [(["none.pte"], "none.pte does not exist"), (["--soak", "0"], "--soak 0 is not above 0")]
)
def test_refusals(served_pte: Path, flags: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        serve.main([str(served_pte), *flags] if flags[0].startswith("-") else flags)
