"""A sweep from top to bottom: steps for all recipes, those that are known already left out, the rest on Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput
from checkpoints.source import Source
from checkpoints.texts import find_texts
from export.bench.desktop.desktop import device_facts
from export.bench.outcome import slug
from export.manifest import own_manifest
from export.sweeps import jobs, store
from export.sweeps.cluster import Cluster, running
from export.sweeps.jobs import Measuring
from export.sweeps.recipes import Recipe
from export.sweeps.rows import Row, make_rows

CONTROL = "it knows no language: it is no better on the texts than on their tokens in any other order"
STAGES = ("calibrate", "export", "evaluate", "bench")


@dataclass
class Step:
    """Something to be done for a row, or with a calibration for several."""

    stage: str
    name: str
    key: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]
    memory: int  # bytes
    after: tuple[str, ...] = ()  # keys
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Sweep:
    """What came of it."""

    config: ModelConfig
    checkpoint: str
    rows: list[Row]


@dataclass(frozen=True)
class How:
    """How a sweep goes about it; `measuring` alone changes what is found."""

    measuring: Measuring = field(default_factory=Measuring)
    proof: bool = True  # each export ends with its verification
    parallel: int | None = None  # steps at once; None: one for every two cores, where memory allows
    address: str | None = None  # of a running Ray


Told = Callable[[str, int, int, list[str]], object]  # a line or "", steps done and in all, and what runs now


def run_sweep(
    source: Source, recipes: Sequence[Recipe], contexts: Sequence[int], out: Path, how: How, told: Told
) -> Sweep:
    """Export, evaluate and time every recipe; files go to folders of `out`.

    BadInput for what is wrong with all of it; what is wrong with one recipe is its row's problem.
    """
    if how.parallel is not None and how.parallel < 1:
        raise BadInput(f"--parallel {how.parallel} is below 1")
    if how.measuring.limit is not None and how.measuring.limit < 1:
        raise BadInput(f"--limit must be at least 1, it is {how.measuring.limit}")
    config = read_config(source.folder)
    rows = make_rows(config, recipes, contexts)
    if all(row.problem for row in rows):
        raise BadInput(f"no recipe suits {source}: {rows[0].problem}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadInput(f"--out {out} cannot be made: {problem.strerror}") from None
    out = out.resolve()  # workers have folders of their own
    steps = _plan(source, config, rows, out, how)
    if steps:
        with running(how.address) as cluster:
            _work(cluster, steps, how, told)
    for row in rows:
        if not row.found.get("evaluate", {}).get("control_passed", True):
            row.problem = row.problem or CONTROL
    return Sweep(config, str(source), rows)


# ---- which steps


def _plan(source: Source, config: ModelConfig, rows: Sequence[Row], out: Path, how: How) -> list[Step]:
    """Steps that are not known, each after what it needs; known results go to their rows."""
    sha256, steps = store.checkpoint_sha256(source), dict[str, Step]()
    folders: dict[Path, str] = {}
    for row in rows:
        if row.options is None or row.problem:
            continue
        folder = out / slug(row.name)
        if folder in folders:
            raise BadInput(f"--recipes {folders[folder]!r} and {row.name!r} would have the same folder {folder}")
        folders[folder] = row.name
        for step in _steps_of(source, config, sha256, row, folder / f"{slug(source.name)}.pte", how):
            steps.setdefault(step.key, step).rows.append(row)
    return sorted(steps.values(), key=lambda step: STAGES.index(step.stage))


def _steps_of(
    source: Source, config: ModelConfig, sha256: dict[str, str], row: Row, file: Path, how: How
) -> list[Step]:
    options, calibration = row.options, row.recipe.calibration
    assert options is not None
    chosen = calibration and asdict(calibration)
    measuring = replace(how.measuring, window=min(how.measuring.window, options.context))
    exported = store.key("export", sha256, asdict(options), chosen, how.proof)
    texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in find_texts("evaluation").items()}
    evaluated = store.key("evaluate", exported, texts, measuring.window, measuring.limit)
    machine = [how.address] if how.address else [device_facts()[name] for name in ("model", "cores", "ram_bytes")]
    flags = measuring.bench_flags(options.context)
    timed = store.key("bench", exported, flags, measuring.engine, machine)
    keys = {"export": exported, "evaluate": evaluated, "bench": timed}
    row.found = {stage: found for stage, key in keys.items() if (found := store.load(key))}

    def step(stage: str, key: str, function: Callable[..., dict[str, Any]], *arguments: Any, after: str = "") -> Step:
        memory = jobs.needed(stage, config, options, calibration)
        return Step(stage, f"{stage} {row.name}", key, function, arguments, memory, (after,) if after else ())

    wanted = [stage for stage in ("evaluate", "bench") if stage not in row.found]
    steps: list[Step] = []
    if "export" not in row.found or (wanted and not _is_there(file, row.found["export"])):
        kept, key = None, ""
        if calibration:
            key = store.key("export", "calibration", sha256, asdict(options.recipe), chosen)
            kept = str(file.parents[1] / "calibrated" / key)
            Path(kept).parent.mkdir(parents=True, exist_ok=True)
            if not Path(kept).is_dir():
                steps.append(step("calibrate", key, jobs.calibrate, source, options, calibration, kept))
        steps.append(step("export", exported, jobs.export, source, options, kept, str(file), how.proof, after=key))
    if "evaluate" in wanted:
        work = (str(file), str(source.folder), measuring)
        steps.append(step("evaluate", evaluated, jobs.evaluate, *work, after=exported))
    if "bench" in wanted:
        steps.append(step("bench", timed, jobs.bench, str(file), measuring, options.context, after=exported))
    return steps


def _is_there(file: Path, exported: dict[str, Any]) -> bool:
    """Whether the file of a kept result still lies where it was made."""
    manifest = own_manifest(file) or {"file": {}}
    same = manifest["file"].get("sha256") == exported["sha256"]
    return same and file.is_file() and file.stat().st_size == exported["bytes"]


# ---- doing them


def _work(cluster: Cluster, steps: Sequence[Step], how: How, told: Told) -> None:
    cores = _cores(cluster, how.parallel)
    waiting, references, refused = dict[Any, Step](), dict[str, Any](), set[str]()
    for step in steps:
        if step.memory > cluster.memory or refused.intersection(step.after):
            refused.add(step.key)
            needed, left = step.memory / 1e9, cluster.memory / 1e9
            _fail(step, f"{step.name} takes about {needed:.1f} GB of memory, {left:.1f} GB are left")
            continue
        after = [references[key] for key in step.after if key in references]
        reference = cluster.submit(
            step.function, step.arguments, after, cores, step.memory, timed=step.stage == "bench"
        )
        references[step.key] = reference
        waiting[reference] = step
    total, done = len(waiting), 0
    told("", done, total, [])
    while waiting:
        for reference, result in cluster.finished(list(waiting)):
            step = waiting.pop(reference)
            done += 1
            _take(step, result)
            told(f"{step.name}: {result.get('problem', 'done')}", done, total, [])
        told("", done, total, [step.name for step in waiting.values()])


def _cores(cluster: Cluster, parallel: int | None) -> int:
    """For each step that is not timed: Ray gives torch as many threads."""
    if parallel is not None:
        return max(1, cluster.cores // parallel)
    return min(2, cluster.cores) if cluster.cores > 2 else cluster.cores


def _take(step: Step, result: dict[str, Any]) -> None:
    if "problem" in result:
        _fail(step, str(result["problem"]))
        return
    if step.stage == "calibrate":
        return
    store.keep(step.key, result)
    for row in step.rows:
        row.found[step.stage] = result


def _fail(step: Step, sentence: str) -> None:
    for row in step.rows:
        row.problem = row.problem or sentence
