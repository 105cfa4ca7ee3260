"""A sweep of phi4-tiny on Ray: its numbers are those of the commands, and what was done is not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from checkpoints.cache import CACHE
from checkpoints.errors import BadInput
from checkpoints.source import resolve
from export import sweep as door
from export.evaluate import evaluate
from export.sweeps import cluster as clusters
from export.sweeps import sweep as sweeps
from export.sweeps.cluster import Cluster, running
from export.sweeps.jobs import Measuring
from export.sweeps.recipes import read_recipes
from export.sweeps.sweep import How, _plan
from tests.tools import need

RECIPES = "8da4w; scales calibration-sequences=1; prefill-chunk=999"
OPTIONS: dict[str, Any] = {"recipes": RECIPES, "context": (256,), "limit": 1, "verify": False}


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    """Ray on two cores, for all of these tests."""
    try:
        import ray  # noqa: F401
    except ImportError:
        need("sweep", ["ray"], "uv sync --extra")
    with running(None, cores=2) as cluster:
        yield cluster


class Steps:
    """What was told of a sweep; it can be stopped behind a line."""

    def __init__(self, stop: str | None = None) -> None:
        self.stop, self.lines, self.total = stop, list[str](), 0

    def __call__(self, line: str, done: int, total: int, names: list[str]) -> None:
        self.total = total
        if line:
            self.lines.append(line)
        if self.stop and line.startswith(self.stop):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def swept(ray: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, Steps]]:
    """A sweep that was stopped in the middle and went on: its folder, the report and what the second run did."""
    out = tmp_path_factory.mktemp("sweep") / "out"

    @contextmanager
    def same(address: str | None) -> Iterator[Cluster]:
        yield ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sweeps, "running", same)
        with pytest.raises(KeyboardInterrupt):
            door.sweep("phi4-tiny", out=out, **OPTIONS, progress=Steps(stop="evaluate 8da4w"))
        steps = Steps()
        report = door.sweep("phi4-tiny", out=out, **OPTIONS, memory="1GB", progress=steps)
        patch.setattr(sweeps, "running", lambda address: pytest.fail("nothing is left to be done"))
        yield out, report, steps


def test_what_was_done_is_not_done_again(swept: tuple[Path, Any, Steps]) -> None:
    out, report, steps = swept
    assert not any(line.startswith(("export 8da4w", "evaluate 8da4w")) for line in steps.lines), steps.lines
    assert 0 < steps.total < 7 and all(line.endswith(": done") for line in steps.lines)
    again = door.sweep("phi4-tiny", out=out, **OPTIONS, memory="1GB")  # nothing is run: `running` would fail
    assert again.plain() == report.plain()


def test_numbers_are_those_of_the_commands(swept: tuple[Path, Any, Steps]) -> None:
    out, report, _ = swept
    plain, calibrated, wrong = report.sweep.rows
    assert wrong.problem == "--prefill-chunk 999 is not within 2 to 256, the context" and not wrong.found
    for row, name in ((plain, "8da4w"), (calibrated, "scales-calibration-sequences-1")):
        file = out / name / "phi4-tiny.pte"
        assert row.bytes == file.stat().st_size == row.needs["file_bytes"]
        expected = evaluate([str(file)], "phi4-tiny", window=256, limit=1).models[0].quality
        assert expected.kl is not None and row.number("evaluate", "kl") == pytest.approx(expected.kl.value, rel=1e-3)
        assert row.number("evaluate", "perplexity") == pytest.approx(expected.perplexity.value, rel=1e-3)
        assert (row.number("bench", "decode_ms") or 0) > 0
    assert calibrated.found["export"]["sha256"] != plain.found["export"]["sha256"]


def test_what_is_left(swept: tuple[Path, Any, Steps], capsys: pytest.CaptureFixture[str]) -> None:
    out, report, _ = swept
    found = json.loads((out / "sweep.json").read_text())
    assert found == json.loads(json.dumps(report.plain()))
    assert found["best"]["name"] in found["fronts"]["bytes"] and found["best"]["fits"]
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    flags = ["--checkpoint", "phi4-tiny", "--out", str(out), "--recipes", RECIPES, "--context", "256", "--limit", "1"]
    assert door.main([*flags, "--no-verify", "--memory", "1GB"]) == 0
    printed = capsys.readouterr().out
    assert "best that fits" in printed and "python -m export.pte --checkpoint phi4-tiny" in printed
    assert "prefill-chunk=999: --prefill-chunk 999 is not within" in printed


def test_a_calibration_runs_once_for_all_that_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoints.config import read_config
    from export.sweeps.rows import make_rows

    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    source = resolve("phi4-tiny")
    config = read_config(source.folder)
    rows = make_rows(config, read_recipes("gptq; gptq kv-cache=fp32; gptq head8; g64"), (256,))
    steps = _plan(source, config, rows, tmp_path, How(Measuring(limit=1)))
    stages = [step.stage for step in steps]
    assert [stages.count(stage) for stage in sweeps.STAGES] == [2, 4, 4, 4]
    assert [row.name for row in steps[0].rows] == ["gptq", "gptq kv-cache=fp32"]


def refuse() -> dict[str, Any]:
    raise BadInput("this recipe cannot be")


def fail() -> dict[str, Any]:
    raise ValueError("a bug")


def die() -> dict[str, Any]:
    os._exit(1)


def test_a_step_that_fails_is_a_sentence(ray: Cluster) -> None:
    first = ray.submit(refuse, (), (), 1, 1, False)
    waiting = {
        first: "this recipe cannot be",
        ray.submit(fail, (), (), 1, 1, False): "ValueError: a bug",
        ray.submit(die, (), (), 1, 1, False): "the process of the step died",
        ray.submit(die, (), (first,), 1, 1, True): "this recipe cannot be",  # never begun
    }
    while waiting:
        for reference, result in ray.finished(list(waiting)):
            assert result == {"problem": waiting.pop(reference)}


def test_folders_of_killed_sweeps_are_removed() -> None:
    left, own = Path("/tmp/pocketphi-ray-4194304999-x"), Path(f"/tmp/pocketphi-ray-{os.getpid()}-test")
    for folder in (left, own):
        folder.mkdir(exist_ok=True)
    clusters._remove_left()
    assert not left.exists() and own.exists()
    own.rmdir()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--plan", "--context", "1"], "no recipe suits"),
        (["--plan", "--phone", "Nokia 3310"], "'Nokia 3310' is not known, the nearest are"),
        (["--plan", "--phone", "iPhone 12", "--memory", "1GB"], "both say what there is"),
        (["--checkpoint", "phi4-tiny"], "--out names the folder"),
        (["--checkpoint", "phi4-tiny", "--out", "{}", "--limit", "0"], "--limit must be at least 1, it is 0"),
        (["--checkpoint", "phi4-tiny", "--out", "{}", "--parallel", "0"], "--parallel 0 is below 1"),
        (["--checkpoint", "phi4-tiny", "--out", "{}/file/x", "--context", "256"], "cannot be made"),
    ],
)
def test_refusals(flags: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=sentence):
        door.main([flag.format(tmp_path) for flag in flags])
    assert not (tmp_path / "sweep.json").exists()


def test_a_plan_needs_no_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["--plan", "--recipes", "8da4w; head8", "--context", "2048,4096", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first = found["recipes"][0]
    assert first["needs"]["file_bytes"] == 2_776_283_632
    fits = {(one["context"], one["engine"]): one["fits"] for one in first["phones"][0]["fits"]}
    assert fits == {(2048, "ours"): True, (2048, "stock"): False, (4096, "ours"): False, (4096, "stock"): False}
    assert door.main(["--plan", "--recipes", "8da4w; head8"]) == 0
    printed = capsys.readouterr().out
    assert "iPhone 15 Pro" in printed and "2,776" in printed and "pocketpal-ai/pull/651" in printed


def test_a_step_that_memory_has_no_room_for_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what comes after it; the row says how much it would take."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    small = Cluster(None, cores=2, bench_cores=2, memory=10**9)  # without Ray: nothing may be submitted

    @contextmanager
    def narrow(address: str | None) -> Iterator[Cluster]:
        yield small

    monkeypatch.setattr(sweeps, "running", narrow)
    report = door.sweep("phi4-tiny", out=tmp_path / "out", recipes="8da4w", context=(256,))
    (row,) = report.sweep.rows
    assert row.problem == "export 8da4w takes about 1.5 GB of memory, 1.0 GB are left" and report.chart is None
