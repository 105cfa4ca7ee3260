"""What every kind of device ends with: files, tables, comparison, exit code. Knows no device."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from checkpoints.errors import BadInput
from checkpoints.files import write_whole
from export.bench.outcome import Outcome, slug
from export.bench.plan import Plan
from export.bench.results import table
from export.bench.results.baseline import Change, check_baseline, compare, differences
from export.bench.results.result import Document, read_result

REGRESSION = 3
INTERRUPTED = 130


@dataclass(frozen=True)
class Reported:
    """One device at the end."""

    outcome: Outcome
    changes: tuple[Change, ...] = ()  # against the baseline
    json_path: Path | None = None
    html_path: Path | None = None


@dataclass(frozen=True)
class Finished:
    """All devices at the end."""

    devices: tuple[Reported, ...]

    @property
    def regressions(self) -> list[Change]:
        return [change for device in self.devices for change in device.changes if change.regression]

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 2 where something went wrong, 3 for a regression, else 0."""
        if any(device.outcome.interrupted for device in self.devices):
            return INTERRUPTED
        if any(device.outcome.problem for device in self.devices):
            return 2
        return REGRESSION if self.regressions else 0

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "devices": [
                {
                    "name": device.outcome.name,
                    "problem": device.outcome.problem,
                    "json": device.json_path and str(device.json_path),
                    "html": device.html_path and str(device.html_path),
                    "changes": [change.as_json() for change in device.changes],
                    "result": device.outcome.document,
                }
                for device in self.devices
            ],
            "exit_code": self.exit_code,
        }


class Ending:
    """Checked before anything is measured: a long run must not fail on its last step."""

    def __init__(self, plan: Plan, out: Path | None, baseline: Path | None, tolerance: float | None) -> None:
        self.out, self.tolerance = out, tolerance
        self.baseline = None if baseline is None else read_result(baseline)
        if self.baseline is not None:
            check_baseline(self.baseline, plan.configurations(), baseline)
        if out is not None:
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise BadInput(f"--out {out} cannot be made: {problem.strerror}") from None
            if not os.access(out, os.W_OK | os.X_OK):
                raise BadInput(f"--out {out} cannot be written to")

    def finish(self, outcomes: Sequence[Outcome]) -> Finished:
        """Write what there is, whole or not at all, and compare it."""
        named = len(outcomes) > 1
        return Finished(tuple(self._report(outcome, named) for outcome in outcomes))

    def _report(self, outcome: Outcome, named: bool) -> Reported:
        document = outcome.document
        if document is None:
            return Reported(outcome)
        changes = tuple(compare(self.baseline, document, self.tolerance)) if self.baseline else ()
        if self.out is None:
            return Reported(outcome, changes)
        from export.bench.results.report import make_html  # takes a second

        stem = self.out / _stem(document, outcome.name if named else None)
        json_path, html_path = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".html")
        write_whole(json_path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
        write_whole(html_path, make_html(document, self.baseline, changes).encode())
        return Reported(outcome, changes, json_path, html_path)

    def notes(self, document: Document) -> list[str]:
        """What makes the comparison with the baseline less than fair."""
        return differences(self.baseline, document) if self.baseline else []


def _stem(document: Document, serial: str | None) -> str:
    stamp = document["created"].replace("-", "").replace(":", "").replace("T", "-").rstrip("Z")
    parts = [slug(Path(document["model"]["file"]).stem), slug(document["device"]["model"])[:40].strip("-")]
    return "_".join([*parts, *([slug(serial)] if serial else []), stamp])


def tell(finished: Finished, ending: Ending, as_json: bool) -> int:
    """Print it for people, or for programs; the exit code."""
    if as_json:
        print(json.dumps(finished.as_json(), indent=1))
    console = Console(stderr=as_json)
    for device in finished.devices:
        document = device.outcome.document
        if document is None or as_json:
            continue
        table.show(document, device.changes, console)
        for note in ending.notes(document):
            console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
        for path in filter(None, (device.json_path, device.html_path)):
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    for change in finished.regressions:
        print(f"regression: {change}", file=sys.stderr)
    for device in finished.devices:
        if device.outcome.problem:
            print("error:", " ".join(device.outcome.problem.split()), file=sys.stderr)
    return finished.exit_code
