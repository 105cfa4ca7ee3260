"""A result as one page of HTML that needs nothing else: no script, no font, no request. Knows no device."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from export.bench.contract import METRICS, MODE_WORDS, Metric, lengths, named
from export.bench.results import charts
from export.bench.results.baseline import Change, differences
from export.bench.results.numbers import number, shown, size, titled
from export.bench.results.result import STATISTICS, Document
from export.bench.results.table import HEADLINES, headlines, notes_of, peak

CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
CHARTS = {"rates": "Rates per repeat", "latency": "Token latency", "memory": "Memory", "temperature": "Temperature"}


def make_html(document: Document, baseline: Document | None = None, changes: Sequence[Change] = ()) -> str:
    """The page; of the `changes` regressions and improvements are marked."""
    device, model = document["device"], document["model"]
    title = f"{model['file']} on {device['model']}"
    drawn = {
        "rates": charts.rates(document, baseline),
        "latency": charts.latency(document),
        "memory": charts.memory(document),
        "temperature": charts.temperature(document),
    }
    cards = [f'<section class="card"><h2>{CHARTS[name]}</h2>{svg}</section>' for name, svg in drawn.items() if svg]
    left_out = [CHARTS[name].lower() for name, svg in drawn.items() if not svg]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="under">{escape(_subtitle(document))}</p>',
        _problem(document),
        *(_tiles(run) for run in document["runs"] if run["repeats"]),
        f'<div class="grid">{"".join(cards)}</div>' if cards else "",
        _notes(document, baseline, left_out),
        _changes(changes),
        _statistics(document),
        _repeats(document),
        f'<div class="grid">{_facts("Device", _device(device))}{_facts("Model", _model(model))}'
        f"{_facts('Measured with', _build(document))}</div>",
        f"<footer>{escape(document['created'])}, format {escape(document['schema'])}</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Whatever a name in the result contains, nothing is fetched and nothing runs.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main></body></html>\n"
    )


def _subtitle(document: Document) -> str:
    device = document["device"]
    parts = [device["soc"], f"{device['os']} {device['os_version']}", device["abi"]]
    if device["ram_bytes"]:
        parts.append(f"{size(device['ram_bytes'])} RAM")
    return " · ".join(filter(None, [*parts, document["build"]["engine"], document["created"][:10]]))


def _problem(document: Document) -> str:
    if document["status"] == "complete":
        return ""
    said = escape(document["problem"] or "no reason is known")
    return f'<section class="card problem"><h2>Incomplete</h2>{said}</section>'


def _tiles(run: dict[str, Any]) -> str:
    summary, wanted = run["summary"], run["configuration"]
    tiles = [_tile(metric, summary[metric.name]) for metric in HEADLINES if summary.get(metric.name)]
    if memory := peak(summary):
        tiles.append(_tile(memory, summary[memory.name]))
    done = len(run["repeats"])
    count = f"{done} of {wanted['repeats']}" if done < wanted["repeats"] else done
    words = MODE_WORDS.get(wanted.get("mode", "text"))
    prompt = f"{wanted['prompt_tokens']} prompt tokens{f' {words}' if words else ''}"
    head = f"{prompt}, {wanted['new_tokens']} new, {count} repeats"
    return f'<section class="card"><h2>{head}</h2><div class="tiles">{"".join(tiles)}</div></section>'


def _tile(metric: Metric, statistics: dict[str, float]) -> str:
    low, middle, high = (shown(metric, statistics[key]) for key in ("p25", "median", "p75"))
    between = f"{low} to {high}" if low != high else ""
    under = ", ".join(filter(None, ["" if metric.unit == "bytes" else metric.unit, between]))
    return f'<div class="tile"><span>{metric.label}</span><b>{middle}</b><small>{under}</small></div>'


def _notes(document: Document, baseline: Document | None, left_out: list[str]) -> str:
    notes = [note for note in notes_of(document) if note != document["problem"]]
    notes += differences(baseline, document) if baseline else []
    if left_out:
        notes.append(f"no chart of {', '.join(left_out)}: this device and engine do not tell")
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="card"><h2>Notes</h2><ul class="notes">{items}</ul></section>'


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    rows = []
    for change in changes:
        kind = "worse" if change.regression else "better" if change.improvement else ""
        tolerated = "" if change.tolerance is None else f"{change.tolerance:.1%}"
        rows.append(
            [
                f"{change.lengths}: {titled(change.metric)}",
                *(shown(change.metric, value) for value in (change.before, change.now)),
                f'<span class="{kind}">{change.words}</span>',
                tolerated,
            ]
        )
    table = _table(["median", "baseline", "now", "change", "tolerated"], rows)
    return f'<section class="card"><h2>Against the baseline</h2>{table}</section>'


def _statistics(document: Document) -> str:
    rows = []
    for run in document["runs"]:
        wanted = run["configuration"]
        for metric in METRICS:
            if found := run["summary"].get(metric.name):
                values = [shown(metric, found[key]) for key in STATISTICS]
                rows.append([f"{lengths(wanted, ' + ')}: {titled(metric)}", *values])
    table = _table(["prompt + new tokens", *STATISTICS], rows)
    return f'<section class="card"><h2>Summary</h2>{table}</section>' if rows else ""


def _repeats(document: Document) -> str:
    rows, metrics = [], headlines(document)
    for run in document["runs"]:
        for index, repeat in enumerate(run["repeats"], 1):
            state = repeat["thermal"]["after"]
            hot = '<span class="worse">hot</span> ' if repeat["throttled"] else ""
            heat = "–" if state["battery_celsius"] is None else f"{state['battery_celsius']:.1f} °C"
            rows.append(
                [
                    f"{named(run['configuration'])}, {index}",
                    *(number(repeat.get(metric.name)) for metric in metrics),
                    str(repeat["generated_tokens"]),
                    repeat["stop_reason"].replace("_", " "),
                    f"{hot}{escape(state['status'])}, {heat}",
                ]
            )
    head = ["repeat", *map(titled, metrics), "new tokens", "ended by", "afterwards"]
    return f'<details class="card"><summary>Every repeat</summary>{_table(head, rows)}</details>' if rows else ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _facts(title: str, facts: dict[str, Any]) -> str:
    rows = "".join(
        f"<dt>{key}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items() if value is not None
    )
    return f'<section class="card"><h2>{title}</h2><dl>{rows}</dl></section>'


def _device(device: dict[str, Any]) -> dict[str, Any]:
    ram = device["ram_bytes"]
    return {
        "model": device["model"],
        "SoC": device["soc"],
        "RAM": ram and size(ram),
        "system": f"{device['os']} {device['os_version']}",
        "ABI": device["abi"],
        "cores": device["cores"],
        "serial": device["serial"],
    }


def _model(model: dict[str, Any]) -> dict[str, Any]:
    facts = model["manifest"] or {}
    planned = facts.get("planned_memory_bytes")
    return {
        "file": model["file"],
        "size": size(model["size_bytes"]),
        "sha256": model["sha256"],
        "tokenizer": model["tokenizer"],
        "checkpoint": facts.get("checkpoint"),
        "recipe": facts.get("recipe"),
        "context": facts.get("context_tokens") and f"{facts['context_tokens']:,} tokens",
        "prefill chunk": facts.get("prefill_chunk_tokens") and f"{facts['prefill_chunk_tokens']:,} tokens",
        "KV cache": facts.get("kv_cache"),
        "planned memory": planned and size(planned),
    }


def _build(document: Document) -> dict[str, Any]:
    build, wanted = document["build"], document["runs"][0]["configuration"] if document["runs"] else None
    facts = {
        "app": f"{build['app']} {build['app_version']}",
        "engine": build["engine"],
        "ExecuTorch": build["executorch"],
    }
    if wanted:
        facts["warm-ups"] = wanted["warmups"]
        facts["rest"] = f"{wanted['cooldown_s']:g} s before a repeat"
        facts["drafts"] = wanted.get("draft_tokens")
        facts["loaded"] = {"once": "once, before the first repeat", "each": "for every repeat"}[wanted["load_mode"]]
    return facts
