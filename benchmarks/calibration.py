"""What choosing levels costs and gives back: every way from checkpoint to file, by the shipped commands.

    python -m benchmarks.calibration [--checkpoint smollm2-135m] [--ways nearest,scales,gptq,awq-gptq,head-8,mixed]
        [--extra-bytes 5%] [--peer] [--limit 4] [--rounds 3] [--work DIR] [--json]

Each way is `export.quantize` and `export.pte` in processes of their own, with their time and memory. The files are
judged by `export.evaluate` on the same windows, through the runtime, against the checkpoint, and decode in turns,
A B C A B C …, by `benchmarks.trial`. Files of one recipe must have the same size to the byte, else exit code 2.
--peer adds what llm-compressor makes of the same floats and tokens, see `benchmarks.peer`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import measure, peer
from benchmarks.run import DISK, Progress
from benchmarks.trial import Trial, round_of
from checkpoints.errors import BadInput, run
from checkpoints.source import SMOLLM2
from export.evaluate import evaluate
from export.evaluation.evaluate import Evaluation

WAYS = {
    "nearest": (),
    "scales": ("--calibrate", "scales"),
    "gptq": ("--calibrate", "gptq"),
    "awq-gptq": ("--calibrate", "awq-gptq"),
    "head-8": ("--calibrate", "awq-gptq", "--head-bits", "8"),
    "mixed": ("--calibrate", "awq-gptq", "--extra-bytes"),  # and how many
}
POSITION, STEPS = 64, 32  # where decoding is timed, and how many steps of a round


def benchmark(
    checkpoint: str,
    ways: Sequence[str],
    extra_bytes: str,
    limit: int | None,
    rounds: int,
    work: Path,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Make, judge and time a file each way; `limit` is the windows of each text. Raises BadInput where one fails."""
    known = (*WAYS, *peer.OBSERVERS)
    if strangers := set(ways) - set(known):
        raise BadInput(f"--ways has {', '.join(sorted(strangers))}, not {', '.join(known)}")
    if peers := set(ways) & set(peer.OBSERVERS):
        progress(f"{', '.join(sorted(peers))}: find or install {peer.PACKAGE}")
        peer.environment()
    results = []
    for way in ways:
        progress(f"{way}: quantize and export")
        path = work / way / f"{way}.pte"
        path.parent.mkdir()
        made = _quantized(checkpoint, way, extra_bytes, path.parent / "kept")
        results.append({"way": way} | made | _exported(path))
    _check_sizes(results)
    evaluation = _judge(results, checkpoint, limit, progress)
    files = [result["file"] for result in results]
    for result, steps in zip(results, _decode(files, rounds, work, progress), strict=True):
        result |= {"decode_ms": statistics.median(steps), "decode_ms_of_rounds": steps}
    return {
        "machine": measure.machine(),
        "checkpoint": checkpoint,
        "windows": evaluation.windows,
        "tokens": evaluation.tokens,
        "reference": asdict(evaluation.models[-1].quality),
        "rounds": rounds,
        "results": results,
    }


def _quantized(checkpoint: str, way: str, extra_bytes: str, kept: Path) -> dict[str, Any]:
    """The checkpoint quantized at `kept`: what that took, and how it was asked for."""
    if way in peer.OBSERVERS:
        return {"flags": [peer.OBSERVERS[way]]} | peer.quantize(checkpoint, peer.OBSERVERS[way], kept)
    flags = (*WAYS[way], extra_bytes) if way == "mixed" else WAYS[way]
    took = _measured("export.quantize", "--checkpoint", checkpoint, *flags, "--out", str(kept))
    return {"flags": list(flags), "quantize": took}


def _exported(path: Path) -> dict[str, Any]:
    """The file of the checkpoint `kept` beside it, and what exporting took."""
    took = _measured("export.pte", "--checkpoint", str(path.parent / "kept"), "--out", str(path), "--no-verify")
    manifest = json.loads(path.with_suffix(".json").read_text())
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "recipe": manifest["options"]["recipe"],
        "export": took,
        "mixed": (manifest["calibration"] or {}).get("mixed"),
    }


def _measured(module: str, *arguments: str) -> dict[str, float]:
    return measure.taken(measure.run((sys.executable, "-m", module, *arguments)), module)


def _judge(results: Sequence[dict[str, Any]], checkpoint: str, limit: int | None, progress: Progress) -> Evaluation:
    """Put into the results what each file loses of the checkpoint, and what it gives back of the first one's loss."""

    def told(what: str, done: int, of: int) -> None:
        if what:
            progress(f"judge {what}: run {done + 1} of {of}")

    evaluation = evaluate([*(one["file"] for one in results), checkpoint], checkpoint, limit=limit, progress=told)
    *judged, reference = (model.quality for model in evaluation.models)
    for result, quality in zip(results, judged, strict=True):
        assert quality.kl and quality.top1
        result["quality"] = asdict(quality)
        result["nll_lost"] = quality.nll.value - reference.nll.value
    for result in results:
        for name, lost in (("kl", lambda one: one["quality"]["kl"]["value"]), ("nll", lambda one: one["nll_lost"])):
            first = lost(results[0])  # on text that is strange to a model, rounding can help
            result[f"{name}_given_back"] = 1 - lost(result) / first if first > 0 else None
    return evaluation


def _check_sizes(results: Sequence[dict[str, Any]]) -> None:
    for one in results:
        for other in results:
            if one["recipe"] == other["recipe"] and one["bytes"] != other["bytes"]:
                raise BadInput(
                    f"{one['way']} and {other['way']} are of one recipe, their files have {one['bytes']} and "
                    f"{other['bytes']} bytes"
                )


def _decode(files: Sequence[str], rounds: int, work: Path, progress: Progress) -> list[list[float]]:
    """Milliseconds a token of each file, by round."""
    found: list[list[float]] = [[] for _ in files]
    for number in range(rounds):
        for file, steps in zip(files, found, strict=True):
            progress(f"decode, round {number + 1} of {rounds}: {Path(file).name}")
            trial = Trial(file, "wheel", str(work), (POSITION,), (), STEPS, 1, POSITION + STEPS)
            steps.append(round_of(trial)[f"decode_ms_at_{POSITION}"])
    return found


def print_report(report: dict[str, Any], console: Console) -> None:
    """A row for each way."""
    console.print(
        f"{report['checkpoint']}: {report['tokens']} tokens in {report['windows']} windows, perplexity "
        f"{report['reference']['perplexity']['value']:.2f}; ± is a standard error",
        highlight=False,
    )
    table = Table()
    for name in ("", "s", "CPU s", "GB", "file bytes", "perplexity", "nll lost", "KL, nats", "top-1", "decode ms"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for result in report["results"]:
        quality, took = result["quality"], result["quantize"]
        back = {
            name: "" if (share := result[f"{name}_given_back"]) is None else f" ({100 * share:.0f} %)"
            for name in ("nll", "kl")
        }
        error = "" if quality["kl"]["error"] is None else f" ± {quality['kl']['error']:.4f}"
        table.add_row(
            result["way"],
            f"{took['wall_s']:.0f}",
            f"{took['cpu_s']:.0f}",
            f"{took['private_peak_bytes'] / 1e9:.1f}",
            f"{result['bytes']:,}",
            f"{quality['perplexity']['value']:.2f}",
            f"{result['nll_lost']:.4f}{back['nll']}",
            f"{quality['kl']['value']:.4f}{error}{back['kl']}",
            f"{100 * quality['top1']['value']:.1f} %",
            f"{result['decode_ms']:.2f}",
        )
    console.print(table)
    console.print(
        f"s, CPU s and GB are of quantizing; in brackets what is given back of the loss of "
        f"{report['results'][0]['way']}; decode is the median of {report['rounds']} rounds in turns",
        soft_wrap=True,
    )
    for result in report["results"]:
        if told := result.get("peer"):
            versions = ", ".join(" ".join(one) for one in told["packages"].items())
            for line in (f"{result['way']}: {versions}; scales by {result['flags'][0]}", *told["fell_back"]):
                console.print(line, soft_wrap=True, highlight=False, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", default=SMOLLM2, help="hub id, folder or name (default: %(default)s)")
    words = ",".join(WAYS)
    parser.add_argument(
        "--ways", default=words, metavar="W,W", help="the first is what others give back of (%(default)s)"
    )
    parser.add_argument("--extra-bytes", default="5%", metavar="N", help="of mixed (default: 5%%)")
    parser.add_argument(
        "--peer", action="store_true", help=f"also what llm-compressor makes: the ways {', '.join(peer.OBSERVERS)}"
    )
    parser.add_argument("--limit", type=int, default=4, metavar="N", help="windows of a text (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of decoding (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the files there (default: removed in the end)")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    flags = parser.parse_args(argv)
    if flags.rounds < 1:
        raise BadInput(f"--rounds {flags.rounds} is not at least 1")
    console = Console(stderr=True)
    with ExitStack() as stack:
        work = flags.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketphi-", dir=DISK)))
        if not work.is_dir() or any(work.iterdir()):
            raise BadInput(f"--work {work} is not an empty folder")
        ways = dict.fromkeys([*flags.ways.split(","), *(peer.OBSERVERS if flags.peer else ())])
        report = benchmark(
            flags.checkpoint, tuple(ways), flags.extra_bytes, flags.limit, flags.rounds, work, console.print
        )
    print(json.dumps(report, indent=2)) if flags.json else print_report(
        report, Console(width=max(Console().width, 130))
    )
    return 0


if __name__ == "__main__":
    run(main)
