"""What was measured of a file, for its card: the verification, the evaluation record, results of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export.bench.contract import lengths
from export.bench.results.numbers import shown, size, spread, titled
from export.bench.results.result import Document
from export.bench.results.table import HEADLINES, headlines, notes_of, peak
from export.hub.tables import estimate, table

COMPARED = {
    "weights": "its weights are the checkpoint's, as its recipe stores them",
    "logits": "with these weights it computes what transformers computes",
    "prefill and decode": "it says the same whether tokens come at once or one by one",
    "rotary": "its rotary factors are those for its context",
    "checkpoint, KL": "it is no further from the checkpoint than rounding explains",
}


def verified(report: Mapping[str, Any] | None, calibration: Mapping[str, Any] | None) -> str:
    """A verification in plain words, with its numbers below; `report` as `export.verification.compare.Report` is."""
    if report is None:
        return "**Not known: the file was never verified.**"
    from export.verification.checks import Check

    checks = [Check(**check) for check in report["checks"]]
    good = sum(check.passed for check in checks)
    verdict = (
        "" if report["passed"] else "**It failed.** " + " ".join(f"{text}." for text in report["failures"]) + " "
    )
    where = f"on an emulated {report['cpu']}" if report["cpu"] else "by ExecuTorch's runtime"
    asked = [words for start, words in COMPARED.items() if any(check.name.startswith(start) for check in checks)]
    quality = report["quality"]
    lines = [
        f"{verdict}When it was exported it was run {where} and compared with `{report['checkpoint']}` in "
        f"transformers, on {report['tokens']} tokens of {report['text']}; {good} of {len(checks)} checks passed. "
        f"They ask whether {'; '.join(asked)}.",
        table(
            ["check", "measured", "at most", "passed"],
            [[check.name, *check.numbers(), "yes" if check.passed else "**no**"] for check in checks],
        ),
        f"Against the checkpoint's own weights, on {quality['positions']} positions: KL "
        f"{quality['kl_mean_nats']:.4f} nats, the same likeliest token at {quality['top1_agreement']:.1%}, "
        f"perplexity {quality['perplexity_file']:.2f} where the checkpoint has "
        f"{quality['perplexity_checkpoint']:.2f}.",
    ]
    if calibration is not None:
        found = calibration["fidelity"]
        ours, nearest = found["calibrated"], found["nearest"]
        lines.append(
            f"When its levels were chosen, against `{calibration['checkpoint']['name']}` on {ours['positions']} "
            f"tokens of {found['text']}: KL {ours['kl_mean_nats']:.4f} nats, where rounding to nearest loses "
            f"{nearest['kl_mean_nats']:.4f}."
        )
    return "\n\n".join(lines)


def evaluated(record: Mapping[str, Any] | None) -> str:
    """The evaluation record of a file, as `export.evaluation.record` keeps it; nothing without one."""
    if record is None:
        return ""
    lines = []
    if text := record["perplexity"]:
        against = f", against `{text['reference']}`" if text["reference"] else ""
        lines.append(
            f"On {text['tokens']:,} tokens in {text['windows']} windows of {text['window_tokens']}{against}, run by "
            f"ExecuTorch's runtime (`python -m export.evaluate`); ± is a standard error."
        )
        rows = [("**all**", text["quality"]), *(text["by_text"].items() if len(text["by_text"]) > 1 else ())]
        names = ["text", "perplexity", "nll"] + (["KL, nats", "same likeliest token"] if text["reference"] else [])
        lines.append(table(names, [[name, *_quality(found)][: len(names)] for name, found in rows]))
        control = text["control"]
        verdict = (
            "worse than on the text, as it must be"
            if control["passed"]
            else "**which says that it does not know the language**"
        )
        lines.append(
            f"As a control, the same tokens in any other order have a nll of {control['nll']:.2f}, {verdict}; no "
            f"model can be below {control['least']:.2f} there."
        )
    if tasks := record["tasks"]:
        harness = ", ".join(sorted({task["harness"] for task in tasks.values()}))
        lines.append(f"Tasks of lm-evaluation-harness {harness}:")
        lines.append(
            table(
                ["task", "version", "shots", "questions", "chat template", "metric", "value"],
                [row for name, task in tasks.items() for row in _task(name, task)],
            )
        )
    return "\n\n".join(lines)


def _quality(found: Mapping[str, Any]) -> list[str]:
    percent = estimate(found["top1"], 1, 100, " %")
    return [estimate(found["perplexity"], 2), estimate(found["nll"], 4), estimate(found["kl"], 4), percent]


def _task(name: str, task: Mapping[str, Any]) -> list[list[str]]:
    told = [name, *(str(task[key]) if task[key] is not None else "–" for key in ("version", "shots", "samples"))]
    chat = "yes" if task["chat"] else "no"
    return [[*told, chat, metric, estimate(value, 4)] for metric, value in task["metrics"].items()]


def devices(results: Sequence[Document]) -> str:
    """A row for each run of each result: medians, and the quarters around them where they differ."""
    rows, notes = [], []
    metrics = [metric for metric in HEADLINES if any(metric in headlines(document) for document in results)]
    for document in results:
        device = document["device"]
        ram = f", {size(device['ram_bytes'])} RAM" if device["ram_bytes"] else ""
        name = f"{device['model']}, {device['os']} {device['os_version']}{ram}"
        for run in document["runs"]:
            wanted, summary, memory = run["configuration"], run["summary"], peak(run["summary"])
            rows.append(
                [
                    name,
                    document["build"]["engine"],
                    lengths(wanted, " + "),
                    f"{len(run['repeats'])}",
                    *(spread(metric, summary.get(metric.name)) for metric in metrics),
                    f"{shown(memory, summary[memory.name]['median'])} {memory.label}" if memory else "–",
                ]
            )
        notes += [f"- {device['model']}: {note}" for note in notes_of(document)]
    if not rows:
        return ""
    names = ["device", "engine", "prompt + new tokens", "repeats", *map(titled, metrics), "memory"]
    parts = ["By `python -m export.bench`; medians, and the middle half of the repeats.", table(names, rows)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])
