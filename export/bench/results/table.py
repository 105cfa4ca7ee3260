"""A result for people at a terminal. Knows no device."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from export.bench.outcome import size
from export.bench.results.baseline import Change
from export.bench.results.result import Document


def render(document: Document, changes: list[Change], tolerance: float) -> Group:
    """One device's facts and its runs; with a baseline, how far each median is from it."""
    device, model = document["device"], document["model"]
    ram = f", {size(device['ram_bytes'])} RAM" if device["ram_bytes"] else ""
    soc = f" ({device['soc']})" if device["soc"] else ""
    title = Text.assemble(
        (f"{device['model']}{soc}", "bold"), f", {device['os']} {device['os_version']} {device['abi']}{ram}\n",
        f"{model['file']}, {size(model['size_bytes'])}, run by {document['build']['engine']}",
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("tokens", "repeats", "prefill/s", "decode/s", "first ms", "load ms", "peak memory"):
        table.add_column(name, justify="left" if name == "tokens" else "right")
    for run in document["runs"]:
        table.add_row(*_row(run))
    parts: list[Any] = [title, table]
    parts += [Text(f"note: {note}", style="yellow") for note in notes_of(document)]
    if changes:
        parts.append(_changes(changes, tolerance))
    return Group(*parts)


def show(document: Document, changes: list[Change], tolerance: float, console: Console) -> None:
    console.print(render(document, changes, tolerance), soft_wrap=False)


def _row(run: dict[str, Any]) -> list[str]:
    wanted, summary = run["configuration"], run["summary"]
    peak, what = next(
        ((summary[f"peak_{key}_bytes"], key.replace("_", " ")) for key in ("footprint", "pss", "private_dirty", "rss")
         if summary[f"peak_{key}_bytes"]), (None, ""),
    )  # fmt: skip
    return [
        f"{wanted['prompt_tokens']}+{wanted['new_tokens']}",
        f"{len(run['repeats'])}/{wanted['repeats']}",
        median(summary["prefill_tokens_per_s"]),
        spread(summary["decode_tokens_per_s"]),
        median(summary["time_to_first_token_ms"]),
        median(summary["load_ms"]),
        f"{size(peak['median'])} {what}" if peak else "?",
    ]


def median(statistics: dict[str, float] | None) -> str:
    return "?" if statistics is None else f"{statistics['median']:,.{1 if statistics['median'] < 1000 else 0}f}"


def spread(statistics: dict[str, float] | None) -> str:
    """The median, and the quarters around it where they differ."""
    if statistics is None:
        return "?"
    low, middle, high = (
        f"{statistics[key]:,.{1 if statistics['max'] < 1000 else 0}f}" for key in ("p25", "median", "p75")
    )
    return middle if low == high else f"{middle} ({low}–{high})"


def notes_of(document: Document) -> list[str]:
    """What a reader of the numbers must know, in sentences."""
    notes = [document["problem"]] if document["problem"] else []
    for run in document["runs"]:
        length = run["configuration"]["prompt_tokens"]
        hot = [str(number) for number, repeat in enumerate(run["repeats"], 1) if repeat["throttled"]]
        if hot:
            notes.append(
                f"{length} tokens: the device was hot in repeat {', '.join(hot)}: slower than it is when cool"
            )
        low = sum(repeat["low_memory_events"] for repeat in run["repeats"])
        if low:
            notes.append(f"{length} tokens: the system warned {low} times of low memory")
        short = [repeat for repeat in run["repeats"] if repeat["stop_reason"] == "end_of_turn"]
        if short:
            least = min(repeat["generated_tokens"] for repeat in short)
            notes.append(f"{length} tokens: {len(short)} answers ended by themselves, after {least} tokens or more")
        notes += sorted({f"{length} tokens: {note}" for repeat in run["repeats"] for note in repeat["notes"]})
    return notes


def _changes(changes: list[Change], tolerance: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("prompt + new", "median of", "baseline", "now", "change"):
        table.add_column(name, justify="left" if name in ("prompt + new", "median of") else "right")
    for change in changes:
        style = "red" if change.beyond(tolerance) else "green" if change.worse < -tolerance else ""
        values = [
            size(value) if change.name.endswith("_bytes") else f"{value:,.1f}"
            for value in (change.before, change.now)
        ]
        table.add_row(
            f"{change.prompt_tokens} + {change.new_tokens}", change.name.replace("_", " "), *values,
            change.words, style=style,
        )  # fmt: skip
    return table
