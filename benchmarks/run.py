"""Measures files in engines beside each other: loads, private memory by position, prefill, decode, drafts.

    python -m benchmarks.run FILE.pte [OTHER.pte | FILE.gguf …] [--engines ours,wheel] [--positions 64,1000,4000]
        [--memory-at 16,200,2000] [--prompt 512] [--drafts] [--draft-model FILE.pte] [--rounds 3] [--json]

A `.pte` is measured in each of --engines: `ours` is our C++ engine with packed weights in a file, `wheel`
upstream's C++ runtime as its libraries for phones are configured. A `.gguf` is measured in llama.cpp, where
llama-cpp-python is installed (`uv run --group peers`); `benchmarks.as_gguf` makes one of a checkpoint. Every trial
is a process of its own, and they take turns, A B C A B C …, so that a machine that slows down slows all; ratios
are medians of the ratios within a round. Files are in the page cache before they are loaded. Knows nothing of
text, but for --drafts (`benchmarks.drafts`), and not whether the logits are right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import drafts, measure
from benchmarks.engines import GGUF, PTE, prepare
from benchmarks.report import print_engines
from benchmarks.trial import Trial, round_of
from checkpoints.errors import BadInput, run

# For packed weights: /tmp is memory on many systems.
DISK = Path("/var/tmp") if Path("/var/tmp").is_dir() else Path(tempfile.gettempdir())
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """What each trial does, and how often."""

    positions: tuple[int, ...] = (64, 1000, 4000)
    memory_at: tuple[int, ...] = (16, 200, 2000)
    new_tokens: int = 16
    prompt: int = 512
    context: int = 4096
    rounds: int = 3
    engines: tuple[str, ...] = PTE
    work: Path = DISK
    draft_tokens: int = drafts.MOST

    def __post_init__(self) -> None:
        for name in ("new_tokens", "prompt", "rounds", "context", "draft_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} {getattr(self, name)} is not at least 1")
        for name in ("positions", "memory_at"):
            if any(position < 1 for position in getattr(self, name)):
                raise BadInput(f"--{name.replace('_', '-')} {','.join(map(str, getattr(self, name)))}: below 1")
        if strangers := set(self.engines) - set(PTE):
            raise BadInput(f"--engines has {', '.join(sorted(strangers))}, not {' or '.join(PTE)}")
        if not self.work.is_dir():
            raise BadInput(f"--work {self.work} is not a folder")


def contestants(files: Sequence[Path], engines: Sequence[str]) -> list[tuple[Path, str]]:
    """Every file with every engine that can run it; BadInput where there is none."""
    found = []
    for path in files:
        if not path.is_file():
            raise BadInput(f"{path} does not exist or is not a file")
        found += [(path, engine) for engine in (GGUF if path.suffix == ".gguf" else engines)]
    return found


def compare(files: Sequence[Path], plan: Plan, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Measure in turns. Returns all trials, the medians of each contestant, and its ratios to the first."""
    field = contestants(files, plan.engines)
    for engine in {engine for _, engine in field}:
        prepare(engine)  # before the first of many minutes, not in the middle
    trials: list[list[dict[str, Any]]] = [[] for _ in field]
    with tempfile.TemporaryDirectory(prefix="pocketphi-", dir=plan.work) as packed:
        for number in range(plan.rounds):
            for index, (path, engine) in enumerate(field):
                progress(f"round {number + 1} of {plan.rounds}: {path.name} in {engine}")
                _into_page_cache(path)
                what = (plan.positions, plan.memory_at, plan.new_tokens, plan.prompt, plan.context)
                trials[index].append(round_of(Trial(str(path.resolve()), engine, packed, *what)))
    results = []
    for (path, engine), own in zip(field, trials, strict=True):
        numbers = [key for key in own[0] if key != "skipped"]
        ratios = {
            key: statistics.median(one[key] / first[key] for one, first in zip(own, trials[0], strict=True))
            for key in numbers
            if all(first.get(key, 0) > 0 for first in trials[0])
        }
        results.append(
            {
                "file": str(path),
                "engine": engine,
                "bytes": path.stat().st_size,
                "median": {key: statistics.median(trial[key] for trial in own) for key in numbers},
                "ratio_to_first": ratios,
                "skipped": own[0]["skipped"],
                "trials": own,
            }
        )
    return {"machine": measure.machine(), "rounds": plan.rounds, "new_tokens": plan.new_tokens, "results": results}


def _into_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".pte, or .gguf for llama.cpp")
    words, plan = ",".join, Plan()
    parser.add_argument("--engines", default=words(PTE), metavar="E,E", help="for a .pte (default: %(default)s)")
    lists = {"positions": "where single steps are timed", "memory_at": "tokens after which memory is taken"}
    for name, help_ in lists.items():
        flag, text = f"--{name.replace('_', '-')}", words(map(str, getattr(plan, name)))
        parser.add_argument(flag, type=_numbers, default=text, metavar="N,N", help=f"{help_} (default: {text})")
    for name, help_ in {
        "new_tokens": "steps at each position",
        "prompt": "tokens of the prompt",
        "context": "tokens that llama.cpp's cache holds",
        "rounds": "trials of each",
    }.items():
        flag, text = f"--{name.replace('_', '-')}", f"{help_} (default: %(default)s)"
        parser.add_argument(flag, type=int, default=getattr(plan, name), metavar="N", help=text)
    parser.add_argument(
        "--work", type=Path, default=DISK, metavar="DIR", help="for packed weights (default: %(default)s)"
    )
    parser.add_argument("--drafts", action="store_true", help="also what drafts bring our engine with the first .pte")
    parser.add_argument("--draft-model", type=Path, metavar="FILE.pte", help="and what they bring a trained one")
    text = "guessed ahead at most (default: %(default)s)"
    parser.add_argument("--draft-tokens", type=int, default=plan.draft_tokens, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print every trial as JSON")
    given = vars(parser.parse_args(argv))
    given["engines"] = tuple(given["engines"].split(","))
    plan = Plan(**{name: given[name] for name in Plan.__dataclass_fields__})
    if (model := given["draft_model"]) is not None:
        contestants([model], PTE)
    console = Console(stderr=True)
    report = compare(given["files"], plan, console.print)
    report["drafts"] = drafts.measure_all(
        next((path for path in given["files"] if path.suffix != ".gguf"), None) if given["drafts"] else None,
        given["draft_model"],
        plan.draft_tokens,
        plan.rounds,
        plan.work,
        console.print,
    )
    if given["json"]:
        print(json.dumps(report, indent=2))
    else:
        print_engines(report, Console())
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(item) for item in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positions like 64,1000") from None


if __name__ == "__main__":
    run(main)
