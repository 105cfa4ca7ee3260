"""Prints what `benchmarks.export` and `benchmarks.run` measured as tables. Knows the keys of their reports alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import GIB


def print_export(report: dict[str, Any], console: Console) -> None:
    checkpoint, options, stages = report["checkpoint"], report["options"], report["stages"]
    console.print(
        f"{checkpoint['layers']} layers, hidden {checkpoint['hidden']}, vocabulary {checkpoint['vocab']}, "
        f"{checkpoint['bytes'] / 1e9:.2f} GB; context {options['context']}, "
        f"{options['chunk']} tokens at once (upstream {options['peer_chunk']}); {report['machine']['cores']} cores",
        soft_wrap=True,
    )
    by = ", ".join(sorted({stage["limited_by"] for stage in stages.values()}))
    table = Table(title=f"stages, each a process of its own, limited and counted by {by}")
    table.add_column("stage", no_wrap=True)
    for name in ("wall s", "CPU s", "private GB", "charged GiB", "limit GiB"):
        table.add_column(name, justify="right")
    for name, stage in stages.items():
        charged = stage["cgroup_peak_bytes"]
        table.add_row(
            f"{name}: {stage['failure']}" if stage["failure"] else name,
            f"{stage['wall_s']:.1f}",
            f"{stage['cpu_s']:.1f}",
            f"{stage['private_peak_bytes'] / 1e9:.2f}",
            f"{charged / GIB:.2f}" if charged else "–",
            f"{stage['limit_bytes'] / GIB:.1f}" if stage["limit_bytes"] else "none",
        )
    console.print(table)
    _print_comparison(report, console)
    if report["where_s"]:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["where_s"].items())
        console.print(f"ours, where the time goes (weights run beside the graph): {parts}", soft_wrap=True)
    _print_limits(report, console)


def totals(report: dict[str, Any], who: str) -> dict[str, float] | None:
    """Seconds and peak of one path to a file, verification left out; None if a stage of it is missing or
    failed."""
    names = [name for name in report["stages"] if name.startswith(f"{who}: ") and name != "ours: verify"]
    if who not in report["files"] or not names:
        return None
    stages = [report["stages"][name] for name in names]
    return {
        "seconds": sum(stage["wall_s"] for stage in stages),
        "private_peak_bytes": max(stage["private_peak_bytes"] for stage in stages),
    } | report["files"][who]


def _print_comparison(report: dict[str, Any], console: Console) -> None:
    ours, theirs = totals(report, "ours"), totals(report, "upstream")
    table = Table("checkpoint to file")
    for name in ("ours", "upstream", "upstream ÷ ours"):
        table.add_column(name, justify="right")
    for label, key, divisor, digits in (
        ("seconds", "seconds", 1.0, 1),
        ("private peak, GB", "private_peak_bytes", 1e9, 2),
        ("file, MB", "bytes", 1e6, 1),
        ("besides quantized weights, MB", "other_bytes", 1e6, 1),
        ("KV cache, MB", "kv_cache_bytes", 1e6, 1),
        ("planned activations, MB", "planned_activation_bytes", 1e6, 1),
        ("delegates", "delegates", 1.0, 0),
    ):
        cells = [f"{path[key] / divisor:,.{digits}f}" if path else "–" for path in (ours, theirs)]
        ratio = f"{theirs[key] / ours[key]:.2f}" if ours and theirs and ours[key] else "–"
        table.add_row(label, *cells, ratio)
    console.print(table)


def _print_limits(report: dict[str, Any], console: Console) -> None:
    if not (limits := report["limits"]):
        return
    ours = totals(report, "ours")
    table = Table("the machine's own limits, one thread")
    for name in ("s", "rate", "ours ÷ it"):
        table.add_column(name, justify="right")
    read, quantize, write = limits["read"], limits["quantize"], limits["write"]
    for label, part, rate in (
        (f"read the checkpoint ({'cold' if read['cold'] else 'perhaps cached'})", read, read["bytes"] / 1e9),
        ("quantize every weight, write nothing", quantize, quantize["elements"] / 1e9),
        ("write a file of our size, fsync", write, write["bytes"] / 1e9),
    ):
        seconds = part["seconds"]
        unit = "G elements/s" if part is quantize else "GB/s"
        ratio = f"{ours['seconds'] / seconds:.2f}" if ours else "–"
        table.add_row(label, f"{seconds:.1f}", f"{rate / seconds:.2f} {unit}", ratio)
    console.print(table)


def print_engines(report: dict[str, Any], console: Console) -> None:
    """What `benchmarks.run` measured: contestants beside each other, and what drafts bring."""
    results = report["results"]

    def keys(start: str) -> list[str]:
        found = {key for result in results for key in result["median"] if key.startswith(start)}
        return sorted(found, key=lambda key: int(key.rsplit("_", 1)[1]))

    prompt = results[0]["median"]["prompt_tokens"]
    rows: list[tuple[str, str, float]] = [  # label, key, divisor
        ("first load, ms", "first_load_ms", 1),
        ("later loads, ms", "load_ms", 1),
        ("private memory, MB, after load", "private_bytes_loaded", 1e6),
        *((f"… after {key.rsplit('_', 1)[1]} tokens", key, 1e6) for key in keys("private_bytes_at_")),
        ("… at most, loading too", "peak_private_bytes", 1e6),
        ("tokens fed at once", "chunk_tokens", 1),
        (f"prefill of {prompt:.0f} tokens, tokens/s", "prompt_tokens_per_s", 1),
        *((f"decode at {key.rsplit('_', 1)[1]}, ms/token", key, 1) for key in keys("decode_ms_at_")),
    ]
    table = Table("", title=f"medians of {report['rounds']} rounds; (×) is the ratio to the first")
    for result in results:
        table.add_column(f"{Path(result['file']).name}\n{result['engine']}", justify="right")
    for label, key, divisor in rows:
        cells = []
        for number, result in enumerate(results):
            if key not in result["median"]:
                cells.append("–")
                continue
            ratio = f"  (×{result['ratio_to_first'][key]:.2f})" if number and key in result["ratio_to_first"] else ""
            cells.append(f"{result['median'][key] / divisor:,.{0 if key == 'chunk_tokens' else 2}f}{ratio}")
        table.add_row(label, *cells)
    console.print(table)
    for result in results:
        for sentence in result["skipped"]:
            console.print(sentence, soft_wrap=True)
    for kind, drafts in report["drafts"].items():
        _print_drafts(kind, drafts, console)


def _print_drafts(kind: str, drafts: dict[str, Any], console: Console) -> None:
    told = {"forced": "the text to be written is given", "answered": "the model's own answers"}[kind]
    table = Table("", title=f"{Path(drafts['file']).name}, up to {drafts['draft_tokens']} drafts a step; {told}")
    for name in ("tokens", "tokens/s without", "tokens/s with", "with ÷ without", "tokens a step", "drafts right"):
        table.add_column(name, justify="right")
    for name, task in drafts["tasks"].items():
        ways = task["plain"], task["drafts"]
        other = "" if task.get("same_tokens", True) else " (other tokens with drafts)"
        table.add_row(
            name + other,
            str(ways[1]["tokens"]),
            *(f"{way['tokens_per_s']:.1f}" for way in ways),
            f"{task['ratio']:.2f}",
            f"{ways[1]['tokens'] / max(1, ways[1]['steps']):.2f}",
            f"{ways[1]['accepted']} of {ways[1]['drafted']}",
        )
    console.print(table)
