"""benchmarks.calibration: what is given back is of the first way's loss, turns are turns, sizes are compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks import calibration
from benchmarks.calibration import WAYS, main, print_report
from checkpoints.errors import BadInput
from export.evaluation.evaluate import Quality
from export.evaluation.scores import Estimate

MADE = {"recipe": {"int8": []}, "quantize": {"wall_s": 3.0, "cpu_s": 4.0, "private_peak_bytes": 5e9}, "mixed": None}


def quality(nll: float, kl: float) -> Quality:
    return Quality(Estimate(20.0, 1.0), Estimate(nll, None), Estimate(kl, 0.01), Estimate(0.75, None))


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files are not made, judged as below and timed one millisecond more each time; the order of the timings."""
    timed: list[str] = []
    sizes = iter((1000, 1000, 1200))

    def made(checkpoint: str, flags: Any, path: Path) -> dict[str, Any]:
        return {"file": str(path), "bytes": next(sizes), "flags": list(flags)} | MADE

    def judged(models: list[str], checkpoint: str, **given: Any) -> Any:
        assert models[-1] == checkpoint
        found = [quality(3.5, 0.4), quality(3.3, 0.1), quality(3.25, 0.05), quality(3.0, 0.0)]
        return SimpleNamespace(windows=4, tokens=2044, models=[SimpleNamespace(quality=q) for q in found])

    def round_of(trial: Any) -> dict[str, float]:
        timed.append(Path(trial.file).stem)
        return {"decode_ms_at_64": float(len(timed))}

    monkeypatch.setattr(calibration, "_made", made)
    monkeypatch.setattr(calibration, "evaluate", judged)
    monkeypatch.setattr(calibration, "round_of", round_of)
    return timed


def test_sizes_of_one_recipe_are_compared(patched: list[str], tmp_path: Path) -> None:
    line = ["--ways", "nearest,gptq,mixed", "--extra-bytes", "7%", "--rounds", "3", "--work", str(tmp_path), "--json"]
    with pytest.raises(BadInput, match="nearest and mixed are of one recipe, their files have 1000 and 1200 bytes"):
        main(line)
    assert patched == [], "nothing is timed before the sizes are compared"


def test_a_row_for_each_way(
    patched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "_check_sizes", lambda results: None)
    line = ["--ways", "nearest,gptq,mixed", "--extra-bytes", "7%", "--rounds", "3", "--work", str(tmp_path), "--json"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    nearest, gptq, mixed = report["results"]
    assert mixed["flags"] == ["--calibrate", "awq-gptq", "--extra-bytes", "7%"] and nearest["flags"] == []
    assert (nearest["kl_given_back"], nearest["nll_given_back"]) == (0, 0)
    assert gptq["kl_given_back"] == pytest.approx(0.75) and gptq["nll_given_back"] == pytest.approx(0.4)
    assert mixed["kl_given_back"] == pytest.approx(0.875) and mixed["nll_lost"] == pytest.approx(0.25)
    assert patched == ["nearest", "gptq", "mixed"] * 3, "in turns"
    assert [one["decode_ms"] for one in report["results"]] == [4.0, 5.0, 6.0]
    console = Console(width=130, record=True)
    print_report(report, console)
    text = console.export_text()
    assert "0.1000 ± 0.0100 (75 %)" in text and "1,200" in text and "…" not in text


def test_what_cannot_be_done(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"--ways has magic, not {', '.join(WAYS)}"):
        main(["--ways", "nearest,magic", "--work", str(tmp_path)])
    with pytest.raises(BadInput, match="--rounds 0 is not at least 1"):
        main(["--rounds", "0"])
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is not an empty folder"):
        main(["--work", str(tmp_path)])


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(BadInput, match="json.tool did not finish .exit code 2.: .*nowhere"):
        calibration._measured("json.tool", "/nowhere.json")
