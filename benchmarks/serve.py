"""Measures a server under load: throughput, first token, latency and memory by conversations and clients.

    python -m benchmarks.serve FILE.pte [--parallel 1,2,4] [--clients 1,4,16] [--seconds 15] [--tokens 32] [--json]
    python -m benchmarks.serve FILE.pte --soak MINUTES

A server is started for each number of conversations, and locust's clients (`benchmarks.load`) talk to it. --soak
keeps 4 clients at 2 conversations who also leave in the middle and send what cannot be answered, and looks at
memory meanwhile: exit code 1 where an answer fails or something is still running at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.measure import ROOT, machine
from checkpoints.errors import BadInput, run
from checkpoints.files import present

# What `benchmarks.load` is told by the environment, and its names in locust's statistics. That module is not imported
# here: locust changes Python's threads and sockets for the whole process.
TOKENS, ROUGH = "POCKETPHI_LOAD_TOKENS", "POCKETPHI_LOAD_ROUGH"
FIRST, ANSWER, LEFT, REFUSED = NAMES = ("first text", "answer", "left in the middle", "refused as it should be")
SOAK_PARALLEL, SOAK_CLIENTS = 2, 4
SAMPLE_S = 5.0  # between two looks at the memory of a soak
WIDTH = 100  # characters of the table
SETTLED = 0.2  # of a soak, after which memory should not grow


@contextmanager
def serving(file: Path, parallel: int) -> Iterator[str]:
    """The url of a server of its own; its packed weights lie in the user's cache."""
    command = [sys.executable, "-m", "export.serve", str(file), "--port", "0", "--max-queue", "1000"]
    process = subprocess.Popen(
        [*command, "--parallel", str(parallel)], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    try:
        said = list[str]()
        for line in process.stderr:
            said.append(line)
            if found := re.match(r"(http://\S+)/v1 answers", line):
                break
        else:
            raise BadInput(f"the server of {file} does not start: {said[-1] if said else 'it says nothing'}")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def load(url: str, clients: int, seconds: float, tokens: int, rough: bool = False) -> dict[str, Any]:
    """What so many clients measure in so long: locust's statistics in a few numbers."""
    environment = os.environ | {TOKENS: str(tokens)} | ({ROUGH: "1"} if rough else {})
    command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("load.py")), "--headless", "--json"]
    command += ["-u", str(clients), "-r", str(clients), "-t", f"{seconds:g}s", "-s", "30", "-H", url]
    done = subprocess.run([*command, "-L", "ERROR"], cwd=ROOT, env=environment, capture_output=True, text=True)
    try:
        stats = {entry["name"]: entry for entry in json.loads(done.stdout) if entry["name"] in NAMES}
        answer, first = stats[ANSWER], stats[FIRST]
    except (ValueError, KeyError):
        raise RuntimeError(f"locust says nothing of answers: {done.stdout[-300:]} {done.stderr[-300:]}") from None
    span = answer["last_request_timestamp"] - answer["start_time"]
    return {
        "clients": clients,
        "requests": {name: entry["num_requests"] for name, entry in stats.items()},
        "failures": sum(entry["num_failures"] for entry in stats.values()),
        "tokens_per_s": answer["total_content_length"] / span,
        "first_ms": [percentile(first, share) for share in (0.5, 0.95)],
        "answer_ms": [percentile(answer, share) for share in (0.5, 0.95)],
    }


def percentile(entry: dict[str, Any], share: float) -> float:
    """Milliseconds within which this share of the requests was done, as locust rounds them."""
    times = sorted((float(ms), count) for ms, count in entry["response_times"].items())
    left = share * sum(count for _, count in times)
    for ms, count in times:
        left -= count
        if left <= 1e-9:
            return ms
    return times[-1][0]


def memory(url: str) -> dict[str, int]:
    """Bytes of the server, private and shared, as its metrics have them."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'pocketphi_memory_bytes\{kind="(\w+)"\} (\S+)', text)
    return {kind: int(float(value)) for kind, value in found}


def left_running(url: str) -> int:
    """Requests that a server still has, when nobody asks any more."""
    for _ in range(100):  # what was left in the middle ends at its next token
        with urllib.request.urlopen(f"{url}/health") as answer:
            told = json.load(answer)
        if not (count := sum(told["running"].values()) + sum(told["waiting"].values())):
            break
        time.sleep(0.05)
    return count


def measure(
    file: Path,
    parallel: Sequence[int],
    clients: Sequence[int],
    seconds: float,
    tokens: int,
    progress: Callable[[str], object],
) -> list[dict[str, Any]]:
    """A row for each number of conversations and of clients."""
    rows = []
    for conversations in parallel:
        with serving(file, conversations) as url:
            idle = memory(url)
            for count in clients:
                progress(f"{conversations} at once, {count} clients")
                found = load(url, count, seconds, tokens)
                rows.append({"parallel": conversations, **found, "memory_idle": idle, "memory": memory(url)})
    return rows


def soak(file: Path, minutes: float, tokens: int, progress: Callable[[str], object]) -> dict[str, Any]:
    """What a long time of rough clients leaves behind."""
    with serving(file, SOAK_PARALLEL) as url:
        samples, ended, began = list[tuple[float, int]](), threading.Event(), time.monotonic()

        def look() -> None:
            while not ended.wait(SAMPLE_S):
                at = time.monotonic() - began
                samples.append((round(at, 1), memory(url)["private"]))
                progress(f"{at / 60:.1f} of {minutes:g} minutes, {samples[-1][1] / 1e6:.0f} MB private")

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            found = load(url, SOAK_CLIENTS, 60 * minutes, tokens, rough=True)
        finally:
            ended.set()
            watcher.join()
        settled = [size for at, size in samples if at >= SETTLED * 60 * minutes] or [memory(url)["private"]]
        third = max(1, len(settled) // 3)
        return found | {
            "minutes": minutes,
            "private_bytes": samples,
            "first_third_bytes": max(settled[:third]),
            "last_third_bytes": max(settled[-third:]),
            "left_running": left_running(url),
        }


def print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("at once", "clients", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("answers", "failed", "tokens/s", "first text, ms", "answer, ms", "private MB", "shared MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["parallel"]),
            str(row["clients"]),
            str(row["requests"][ANSWER]),
            str(row["failures"]),
            f"{row['tokens_per_s']:.1f}",
            *(f"{row[key][0]:,.0f} / {row[key][1]:,.0f}" for key in ("first_ms", "answer_ms")),
            *(f"{row['memory'][kind] / 1e6:,.0f}" for kind in ("private", "shared")),
        )
    console.print(table)
    console.print("of times the median, and what 95 % of the answers stayed within", highlight=False)


def print_soak(found: dict[str, Any], console: Console) -> None:
    done = ", ".join(f"{count} {name}" for name, count in found["requests"].items())
    sizes = [f"{found[key] / 1e6:.1f} MB" for key in ("first_third_bytes", "last_third_bytes")]
    console.print(f"{found['minutes']:g} minutes: {done}; {found['failures']} failed", highlight=False)
    console.print(f"{found['tokens_per_s']:.1f} tokens/s in whole answers", highlight=False)
    console.print(f"private memory at most {sizes[0]} in the first third, {sizes[1]} in the last", highlight=False)
    console.print(f"still running at the end: {found['left_running']}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help=".pte")
    parser.add_argument("--parallel", type=_numbers, default="1,2,4", metavar="N,N", help="default: %(default)s")
    parser.add_argument("--clients", type=_numbers, default="1,4,16", metavar="N,N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=15, metavar="S", help="of each (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=32, metavar="N", help="of an answer at most (default: %(default)s)"
    )
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="one long run with rough clients instead")
    parser.add_argument("--json", action="store_true", help="print the result for a program")
    given = parser.parse_args(argv)
    if not present(given.file):
        raise BadInput(f"{given.file} does not exist")
    for name in ("seconds", "tokens", "soak"):
        if (value := getattr(given, name)) is not None and value <= 0:
            raise BadInput(f"--{name} {value:g} is not above 0")
    console, progress = Console(), Console(stderr=True).print
    console.width = max(console.width, WIDTH)
    file = given.file.resolve()
    if given.soak is not None:
        found = soak(file, given.soak, given.tokens, progress)
        print(json.dumps(found, indent=2)) if given.json else print_soak(found, console)
        return 1 if found["failures"] or found["left_running"] else 0
    rows = measure(file, given.parallel, given.clients, given.seconds, given.tokens, progress)
    print(json.dumps({"machine": machine(), "rows": rows}, indent=2)) if given.json else print_rows(rows, console)
    return 1 if any(row["failures"] for row in rows) else 0


def _numbers(text: str) -> list[int]:
    try:
        found = [int(item) for item in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1,2,4")
    return found


if __name__ == "__main__":
    run(main)
