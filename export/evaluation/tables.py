"""An evaluation for people: tables on stdout, differences, and the verdicts of controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from export.evaluation.evaluate import Evaluated, Evaluation, Quality
from export.evaluation.record import metrics
from export.evaluation.scores import Estimate, Interval


def print_evaluation(evaluation: Evaluation) -> None:
    """For people: a row for each model, and one for each of its texts."""
    console = _console()
    against = f", against {evaluation.reference}" if evaluation.reference else ""
    console.print(
        f"{evaluation.tokens} tokens in {evaluation.windows} windows of {evaluation.window_tokens}"
        f"{escape(against)}; ± is a standard error",
        highlight=False,
    )
    columns = ["", "MB", "perplexity", "nll"] + ["KL, nats", "top-1"] * (evaluation.reference is not None)
    speeds = [model.speed for model in evaluation.models if model.speed]
    columns += ["ms/token"] * bool(speeds)
    names, *numbers = columns  # names give way where a terminal is narrow
    table = Table(Column(names), *(Column(name, no_wrap=True) for name in numbers), box=SIMPLE_HEAD, pad_edge=False)
    for model in evaluation.models:
        table.add_row(
            f"[bold]{escape(model.name)}", f"{model.bytes / 1e6:,.1f}", *_cells(model.quality), *_speed(model)
        )
        for text, quality in model.by_text.items() if len(model.by_text) > 1 else ():
            table.add_row(f"  {escape(text)}", "", *_cells(quality))
    console.print(table)
    if speeds:
        console.print(
            f"ms/token: decoding after {speeds[0].position} tokens on this machine, the median of {speeds[0].tokens} "
            f"in the fastest of {speeds[0].turns} turns",
            highlight=False,
            soft_wrap=True,
        )
    first = evaluation.models[0].name
    for model in evaluation.models[1:]:
        if model.more_nll:
            also = f", KL {_interval(model.more_kl)}" if model.more_kl else ""
            console.print(
                f"{escape(model.name)} minus {escape(first)}: nll {_interval(model.more_nll)}{also}",
                highlight=False,
                soft_wrap=True,
            )
    for model in evaluation.models:
        console.print(
            f"control {_verdict(model.control_passed)}: {escape(model.name)} has nll {model.shuffled_nll:.2f} on the "
            f"same tokens in any other order, where none is below {model.shuffled_least:.2f}",
            highlight=False,
            soft_wrap=True,
        )


def print_tasks(results: Mapping[str, Any]) -> None:
    """Results of tasks by file, as `answer_tasks` gives them: a row for each metric."""
    console = _console()
    names = ("", "version", "examples", "questions", "metric", "")
    table = Table(
        *(Column(name, no_wrap=number > 0) for number, name in enumerate(names)), box=SIMPLE_HEAD, pad_edge=False
    )
    for file, found in results.items():
        table.add_row(f"[bold]{escape(file)}")
        for task, numbers in found["results"].items():
            questions = found.get("n-samples", {}).get(task, {}).get("effective", "")
            about = [found.get(key, {}).get(task, "") for key in ("versions", "n-shot")]
            for metric, value in metrics(numbers).items():
                error = "" if value["error"] is None else f" ± {value['error']:.4f}"
                row = (f"  {task}", *about, questions, metric, f"{value['value']:.4f}{error}")
                table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)
    for file, found in results.items():
        for task, control in found["controls"].items():
            console.print(
                f"control {_verdict(control['passed'])}: {escape(file)} has {control['accuracy']:.3f} of "
                f"{escape(task)} right, and {control['permuted']:.3f} by the labels of other questions",
                highlight=False,
                soft_wrap=True,
            )


def _console() -> Console:
    console = Console()
    if not console.is_terminal:  # a file has no width
        console.width = 160
    return console


def _verdict(passed: bool) -> str:
    return "passed" if passed else "[bold red]FAILED[/]"


def _cells(quality: Quality) -> list[str]:
    cells = [_number(quality.perplexity, 2), f"{quality.nll.value:.4f}"]
    if quality.kl and quality.top1:
        cells += [_number(quality.kl, 4), _number(quality.top1, 1, 100) + " %"]
    return cells


def _speed(model: Evaluated) -> list[str]:
    if model.speed is None:
        return []
    return [f"{model.speed.ms:.2f}"]


def _number(estimate: Estimate, digits: int, scale: float = 1) -> str:
    error = "" if estimate.error is None else f" ± {scale * estimate.error:.{digits}f}"
    return f"{scale * estimate.value:.{digits}f}{error}"


def _interval(interval: Interval) -> str:
    bounds = "" if interval.low is None else f" (95 %: {interval.low:+.4f} to {interval.high:+.4f})"
    return f"{interval.value:+.4f}{bounds}"
