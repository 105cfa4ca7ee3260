"""A result for people at a terminal. Knows no device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from export.bench.contract import MEMORY, METRICS, REMARKS, Metric, lengths, named
from export.bench.results.baseline import Change
from export.bench.results.numbers import shown, size, spread, titled
from export.bench.results.result import Document

HEADLINES = [metric for metric in METRICS if metric.headline]


def render(document: Document, changes: Sequence[Change]) -> Group:
    """One device's facts and its runs; with a baseline, how far each median is from it."""
    device, model = document["device"], document["model"]
    ram = f", {size(device['ram_bytes'])} RAM" if device["ram_bytes"] else ""
    soc = f" ({device['soc']})" if device["soc"] else ""
    title = Text(f"{device['model']}{soc}", style="bold")
    title.append(f", {device['os']} {device['os_version']} {device['abi']}{ram}\n", style="not bold")
    title.append(f"{model['file']}, {size(model['size_bytes'])}, run by {document['build']['engine']}", "not bold")
    metrics = headlines(document)
    table = _table("tokens", "repeats", *(f"{metric.label}\n{metric.unit}" for metric in metrics), "peak\nmemory")
    for run in document["runs"]:
        table.add_row(*_row(run, metrics))
    parts: list[RenderableType] = [title, table]
    parts += [Text(f"note: {note}", style="yellow") for note in notes_of(document)]
    if changes:
        parts.append(_changes(changes))
    return Group(*parts)


def show(document: Document, changes: Sequence[Change], console: Console) -> None:
    console.print(render(document, changes), soft_wrap=False)


def headlines(document: Document) -> list[Metric]:
    """Those of a multimodal file only where a run has them."""
    found = [run["summary"].get("encode_ms") for run in document["runs"]]
    return [metric for metric in HEADLINES if metric.name != "encode_ms" or any(found)]


def peak(summary: dict[str, Any]) -> Metric | None:
    """The kind of memory to name when there is room for one: the first that is known."""
    return next((metric for metric in MEMORY if summary.get(metric.name)), None)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(names):
        table.add_column(name, justify="right" if at else "left")
    return table


def _row(run: dict[str, Any], metrics: Sequence[Metric]) -> list[str]:
    wanted, summary = run["configuration"], run["summary"]
    memory = peak(summary)
    return [
        lengths(wanted),
        f"{len(run['repeats'])}/{wanted['repeats']}",
        *(spread(metric, summary.get(metric.name)) for metric in metrics),
        f"{shown(memory, summary[memory.name]['median'])}\n{memory.label.removeprefix('peak ')}" if memory else "–",
    ]


def notes_of(document: Document) -> list[str]:
    """What a reader of the numbers must know, in sentences."""
    notes = [document["problem"]] if document["problem"] else []
    for run in document["runs"]:
        name = named(run["configuration"])
        notes += [f"{name}: {remark}" for remark in _remarks(run["repeats"])]
        notes += sorted({f"{name}: {note}" for repeat in run["repeats"] for note in repeat["notes"]})
    return notes


def _remarks(repeats: Sequence[dict[str, Any]]) -> list[str]:
    remarks = []
    if hot := [str(number) for number, repeat in enumerate(repeats, 1) if repeat["throttled"]]:
        remarks.append(REMARKS["hot"].format(repeats=", ".join(hot)))
    if unpacked := sorted({str(repeat["packing_note"]) for repeat in repeats if repeat.get("packing") == "none"}):
        remarks.append(REMARKS["not_packed"].format(note="; ".join(unpacked)))
    if drafted := sum(repeat.get("drafted_tokens", 0) for repeat in repeats):
        accepted = sum(repeat.get("accepted_tokens", 0) for repeat in repeats)
        remarks.append(REMARKS["drafts"].format(drafted=drafted, accepted=accepted))
    if low := sum(repeat["low_memory_events"] for repeat in repeats):
        remarks.append(REMARKS["low_memory"].format(count=low))
    if short := [repeat["generated_tokens"] for repeat in repeats if repeat["stop_reason"] == "end_of_turn"]:
        remarks.append(REMARKS["ended_early"].format(count=len(short), tokens=min(short)))
    return remarks


def _changes(changes: Sequence[Change]) -> Table:
    table = _table("prompt + new", "median of", "baseline", "now", "change")
    for change in changes:
        table.add_row(
            change.lengths,
            titled(change.metric),
            shown(change.metric, change.before),
            shown(change.metric, change.now),
            change.words,
            style="red" if change.regression else "green" if change.improvement else "",
        )
    return table
