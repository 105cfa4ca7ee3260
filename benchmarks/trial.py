"""One trial of one file in one engine, in a process of its own: load, memory by position, decode, prefill.

A fresh process loads, feeds random tokens from an empty cache on, takes its private memory and a few single steps
where it was asked to, and feeds a prompt at the end. Every token before a position has been fed, for an engine may
take memory, or read, only what is filled. Which tokens they are makes no difference to the cost.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measure
from checkpoints.errors import BadInput, run
from export.engine.memory import trim


@dataclass(frozen=True)
class Trial:
    """What one process does."""

    file: str
    engine: str
    packed: str  # folder for our packed weights
    positions: tuple[int, ...]  # where steps of one token are timed
    memory_at: tuple[int, ...]  # after so many tokens
    new_tokens: int  # steps at each position
    prompt: int  # tokens
    context: int  # tokens, of llama.cpp
    load_only: bool = False


def measured(trial: Trial) -> dict[str, Any]:
    """Do it in this process. Times of steps are medians; memory is what was added to before the load, in bytes."""
    from benchmarks import engines

    path = Path(trial.file)
    engines.prepare(trial.engine)
    trim()
    whole, base = measure.private_bytes([psutil.Process()]), measure.anonymous_bytes()
    start = time.perf_counter()
    engine = engines.load(trial.engine, path, Path(trial.packed), trial.context)
    found: dict[str, Any] = {"load_ms": 1e3 * (time.perf_counter() - start), "base_private_bytes": whole}
    found |= {"context_tokens": engine.context, "chunk_tokens": engine.chunk, "skipped": []}
    if trial.load_only:
        engine.close()
        return found
    found["private_bytes_loaded"] = measure.anonymous_bytes() - base
    ids = random.Random(0).choices(range(engine.vocab_size), k=engine.context)

    def feed(begin: int, end: int) -> float:
        """Feed the tokens of these positions, as many at once as the engine takes; milliseconds."""
        begun = time.perf_counter()
        for at in range(begin, end, engine.chunk):
            engine.feed(ids[at : min(at + engine.chunk, end)], at)
        return 1e3 * (time.perf_counter() - begun)

    at = 0
    for mark in sorted({*trial.positions, *trial.memory_at}):
        if mark + trial.new_tokens * (mark in trial.positions) > engine.context:
            found["skipped"].append(f"{path.name} holds {engine.context} tokens: nothing is measured at {mark}")
            continue
        feed(at, mark)
        at = max(at, mark)
        if mark in trial.memory_at:
            found[f"private_bytes_at_{mark}"] = measure.anonymous_bytes() - base
        if mark in trial.positions:
            steps = [feed(mark + step, mark + step + 1) for step in range(trial.new_tokens)]
            found[f"decode_ms_at_{mark}"] = statistics.median(steps)
    engine.clear()
    found["prompt_tokens"] = prompt = min(trial.prompt, engine.context)
    if prompt < trial.prompt:
        found["skipped"].append(f"{path.name} holds {prompt} tokens: the prompt of {trial.prompt} is cut to that")
    found["prompt_tokens_per_s"] = 1e3 * prompt / feed(0, prompt)
    found["final_private_bytes"] = measure.anonymous_bytes() - base
    engine.close()
    return found


def in_child(trial: Trial) -> dict[str, Any]:
    """`measured` in a process of its own, with that process's peak of memory; BadInput where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "trial.json")
        done = measure.run((sys.executable, "-m", "benchmarks.trial", json.dumps(asdict(trial)), str(into)))
        if done.failure:
            last = "".join(done.tail.strip().splitlines()[-1:]).removeprefix("error: ")
            raise BadInput(f"{trial.file} could not be measured by {trial.engine} ({done.failure}): {last}")
        result: dict[str, Any] = json.loads(into.read_text())
    base, final = result.pop("base_private_bytes"), result.pop("final_private_bytes", 0)
    # What the file added to a process that had Python and torch in it already; for a file of a few megabytes the
    # process was larger while it imported them, and this is too much.
    return result | {"peak_private_bytes": max(done.private_peak_bytes - base, final)}


def round_of(trial: Trial) -> dict[str, Any]:
    """The trial, and where the engine packs weights once and for all, that first load in a process before it."""
    if trial.engine != "ours":
        result = in_child(trial)
        return result | {"first_load_ms": result["load_ms"]}
    with tempfile.TemporaryDirectory(dir=trial.packed) as folder:
        trial = replace(trial, packed=str(Path(folder, "packed")))
        first = in_child(replace(trial, load_only=True))
        return in_child(trial) | {"first_load_ms": first["load_ms"]}


def main() -> int:
    given = json.loads(sys.argv[1])
    lists = {name: tuple(given[name]) for name in ("positions", "memory_at")}
    Path(sys.argv[2]).write_text(json.dumps(measured(Trial(**given | lists))))
    return 0


if __name__ == "__main__":
    run(lambda argv: main())
