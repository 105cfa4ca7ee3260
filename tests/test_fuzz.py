"""Damaged checkpoints end in a sentence or a file; `python -m tests.fuzz` runs more of them and prints a table."""

from pathlib import Path

import pytest

from tests import fuzz


def test_damaged_checkpoints() -> None:
    counts, wrong = fuzz.fuzz(80, seed=1)
    assert wrong == []
    outcomes = {outcome for _, outcome in counts}
    assert outcomes == {"refused", "exported"}  # some damage is harmless, or the fuzzer does nothing


def test_the_fuzzer_sees_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(folder: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("export.pipeline.read_config", crash)
    _, wrong = fuzz.fuzz(1)
    assert "ZeroDivisionError" in wrong[0]
