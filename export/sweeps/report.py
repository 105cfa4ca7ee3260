"""What a sweep leaves: sweep.json and the chart beside its files, with the best recipe for a phone."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.files import write_whole
from export.planning.phones import Phone
from export.sweeps.chart import draw, fronts
from export.sweeps.rows import Choice, Row, best
from export.sweeps.sweep import Sweep

JSON, CHART = "sweep.json", "pareto.png"


@dataclass(frozen=True)
class Report:
    """A sweep and, where a phone was named, the best of it."""

    sweep: Sweep
    phone: Phone | None
    choice: Choice | None
    command: str | None  # makes the best one's file
    chart: Path | None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "checkpoint": self.sweep.checkpoint,
            "recipes": [row.plain() for row in self.sweep.rows],
            "fronts": fronts(self.sweep.rows),
            "phone": self.phone and asdict(self.phone),
            "best": self.choice and self.choice.plain() | {"command": self.command},
        }


def make_report(sweep: Sweep, checkpoint: str | None, phone: Phone | None, folder: Path) -> Report:
    """Choose, and write into `folder`; `checkpoint` as it was given, for the command."""
    choice = None if phone is None else best(sweep.config, sweep.rows, phone)
    command = None if choice is None else export_command(checkpoint, choice.row, choice.context)
    chart = folder / CHART if draw(sweep, choice, folder / CHART) else None
    report = Report(sweep, phone, choice, command, chart)
    write_whole(folder / JSON, json.dumps(report.plain(), indent=2).encode() + b"\n")
    return report


def export_command(checkpoint: str | None, row: Row, context: int) -> str:
    """What makes the file of a row for a context."""
    words = ["python", "-m", "export.pte", *(["--checkpoint", checkpoint] if checkpoint else [])]
    return shlex.join([*words, *row.recipe.words, f"--context={context}", "--out", "model.pte"])
