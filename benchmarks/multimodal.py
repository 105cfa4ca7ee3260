"""Time and memory of a multimodal file by what its prompt holds, in our engine beside the wheel's runtime.

    python -m benchmarks.multimodal FILE.pte [--engines ours,wheel] [--picture 1344x896] [--seconds 10]
        [--new-tokens 16] [--rounds 3] [--json]

One conversation after another in the same process: text, a picture, a sound, both. For each: encoding, feeding all of
the prompt, and single steps after it; then the process's private memory, less what it had before the file was loaded.
Every trial is a process of its own, and they take turns. `ours` maps packed weights from a file that a process
before it has made; `wheel` is upstream's C++ runtime as its libraries for phones are configured. Pixels and samples
are made here; what they are makes no difference to the cost.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.engines import PTE, prepare
from benchmarks.run import DISK
from checkpoints.errors import BadInput, run
from export.engine.memory import trim

QUESTION = 24  # tokens beside what is encoded


@dataclass(frozen=True)
class Plan:
    """What each trial does."""

    file: str
    engine: str
    packed: str  # folder for our packed weights
    width: int  # pixels of the picture
    height: int
    seconds: float  # of the sound
    new_tokens: int
    load_only: bool = False


def compare(
    file: Path,
    engines: Sequence[str] = PTE,
    picture: tuple[int, int] = (1344, 896),
    seconds: float = 10.0,
    new_tokens: int = 16,
    rounds: int = 3,
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure in turns. Returns all trials, and for each engine and prompt the medians and ratios to the first."""
    if strangers := set(engines) - set(PTE):
        raise BadInput(f"--engines has {', '.join(sorted(strangers))}, not {' or '.join(PTE)}")
    if rounds < 1 or new_tokens < 1 or not seconds > 0 or min(picture) < 1:
        raise BadInput("--rounds, --new-tokens, --seconds and both sides of --picture must be above 0")
    if not file.is_file():
        raise BadInput(f"{file} does not exist or is not a file")
    for engine in engines:
        prepare(engine)
    trials: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory(prefix="pocketphi-", dir=DISK) as packed:
        plans = [Plan(str(file.resolve()), one, packed, *picture, seconds, new_tokens) for one in engines]
        for number in range(rounds):
            for plan in plans:
                progress(f"round {number + 1} of {rounds}: {file.name} in {plan.engine}")
                if plan.engine == "ours" and number == 0:
                    _in_child(Plan(**asdict(plan) | {"load_only": True}))
                trials[plan.engine].append(_in_child(plan))
    results = []
    for engine, own in trials.items():
        for at, first in enumerate(own[0]["prompts"]):
            rows = [trial["prompts"][at] for trial in own]
            median = {key: statistics.median(row[key] for row in rows) for key in first if key != "prompt"}
            others = [trial["prompts"][at] for trial in trials[engines[0]]]
            ratio = {
                key: statistics.median(row[key] / other[key] for row, other in zip(rows, others, strict=True))
                for key in median
                if all(other[key] > 0 for other in others)
            }
            results.append({"engine": engine, "prompt": first["prompt"], "median": median, "ratio_to_first": ratio})
    whole = {
        key: {engine: statistics.median(trial[key] for trial in own) for engine, own in trials.items()}
        for key in ("load_ms", "peak_private_bytes")
    }
    return {
        "machine": measure.machine(),
        "file": str(file),
        "bytes": file.stat().st_size,
        "rounds": rounds,
        "picture": list(picture),
        "seconds": seconds,
        "results": results,
        "trials": trials,
    } | whole


def measured(plan: Plan) -> dict[str, Any]:
    """Do it in this process. Memory is what was added to before the load, in bytes."""
    from export.engine.feeder import open_feeder
    from export.engine.runner import read_facts
    from export.media.prompt import Mode
    from export.media.vectors import painted, tone

    path = Path(plan.file)
    facts = read_facts(path)
    if facts.media.image is None or facts.media.audio is None:
        raise BadInput(f"{path} does not take both pictures and sound")
    prepare(plan.engine)
    trim()
    whole, base = measure.private_bytes([psutil.Process()]), measure.anonymous_bytes()
    folder = Path(plan.packed) if plan.engine == "ours" else None
    start = time.perf_counter()
    feeder = open_feeder(path, "ours" if folder else "wheel", folder, 0, None, facts.media, facts.context)
    found: dict[str, Any] = {"load_ms": 1e3 * (time.perf_counter() - start), "base_private_bytes": whole}
    if plan.load_only:
        feeder.close()
        return found
    pixels = painted(plan.width, plan.height)
    samples = tone(facts.media.audio.rate, plan.seconds, 440.0, 0.3)
    rng = random.Random(0)
    question = rng.choices(range(1, 500), k=QUESTION)
    prompts: list[tuple[str, Mode, bool, bool]] = [
        ("text", "text", False, False),
        ("picture", "vision", True, False),
        ("sound", "speech", False, True),
        ("both", "vision", True, True),
    ]
    rows = []
    for name, mode, seen, heard in prompts:
        feeder.reset()
        encoded = [feeder.picture(pixels)] if seen else []
        encoded += [feeder.sound(samples, facts.media.audio.rate, mode)] if heard else []
        feeder.ready(mode)
        ids = [*(token for one in encoded for token in one.ids), *question]
        begun = time.perf_counter()
        feeder.feed(ids)
        fed = time.perf_counter()
        steps = []
        for token in rng.choices(range(1, 500), k=plan.new_tokens):
            ids.append(token)
            start = time.perf_counter()
            feeder.feed(ids)
            steps.append(1e3 * (time.perf_counter() - start))
        rows.append(
            {
                "prompt": name,
                "tokens": len(ids) - plan.new_tokens,
                "prepare_ms": sum(one.prepare_ms for one in encoded),
                "encode_ms": sum(one.encode_ms for one in encoded),
                "prefill_ms": 1e3 * (fed - begun),
                "decode_ms": statistics.median(steps),
                "private_bytes": measure.anonymous_bytes() - base,
            }
        )
    feeder.close()
    return found | {"prompts": rows}


def _in_child(plan: Plan) -> dict[str, Any]:
    """`measured` in a process of its own, with that process's peak of memory; BadInput where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "trial.json")
        command = (sys.executable, "-m", "benchmarks.multimodal", "--trial", json.dumps(asdict(plan)), str(into))
        done = measure.run(command)
        if done.failure:
            last = "".join(done.tail.strip().splitlines()[-1:]).removeprefix("error: ")
            raise BadInput(f"{plan.file} could not be measured by {plan.engine} ({done.failure}): {last}")
        result: dict[str, Any] = json.loads(into.read_text())
    return result | {"peak_private_bytes": done.private_peak_bytes - result.pop("base_private_bytes")}


def _print(report: dict[str, Any], console: Console) -> None:
    width, height = report["picture"]
    title = (
        f"{Path(report['file']).name}, {report['bytes'] / 1e6:,.0f} MB, medians of {report['rounds']} rounds; "
        f"a picture of {width} x {height} pixels, a sound of {report['seconds']:g} s"
    )
    table = Table("prompt", "engine", title=title)
    for name in ("tokens", "prepare ms", "encode ms", "prefill ms", "decode ms", "private MB"):
        table.add_column(name, justify="right")
    for result in report["results"]:
        median, ratio = result["median"], result["ratio_to_first"]

        def cell(key: str, scale: float = 1.0, digits: int = 0, median: Any = median, ratio: Any = ratio) -> str:
            times = f" ({ratio[key]:.2f}x)" if key in ratio and ratio[key] != 1 else ""
            return f"{median[key] / scale:,.{digits}f}{times}"

        table.add_row(
            result["prompt"],
            result["engine"],
            f"{median['tokens']:,.0f}",
            cell("prepare_ms"),
            cell("encode_ms"),
            cell("prefill_ms"),
            cell("decode_ms", digits=1),
            cell("private_bytes", 1e6),
        )
    console.print(table)
    for engine, load in report["load_ms"].items():
        peak = report["peak_private_bytes"][engine]
        console.print(f"{engine}: loaded in {load:,.0f} ms, {peak / 1e6:,.0f} MB of private memory at most")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multimodal", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE.pte")
    parser.add_argument("--engines", default=",".join(PTE), metavar="E,E", help="(default: %(default)s)")
    parser.add_argument(
        "--picture", type=_size, default="1344x896", metavar="WxH", help="pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="of the sound (default: %(default)g)"
    )
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="trials of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print every trial as JSON")
    parser.add_argument("--trial", nargs=2, metavar=("PLAN", "OUT"), help=argparse.SUPPRESS)
    flags = vars(parser.parse_args(argv))
    as_json, trial = flags.pop("json"), flags.pop("trial")
    if trial:
        Path(trial[1]).write_text(json.dumps(measured(Plan(**json.loads(trial[0])))))
        return 0
    if flags["file"] is None:
        raise BadInput("which file? python -m benchmarks.multimodal FILE.pte")
    flags["engines"] = flags["engines"].split(",")
    console = Console(stderr=True)
    report = compare(**flags, progress=console.print)
    if as_json:
        print(json.dumps(report))
    else:
        _print(report, Console())
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1344x896")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    run(main)
