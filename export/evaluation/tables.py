"""An evaluation for people: a table on stdout, differences, and the control's verdict."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from export.evaluation.evaluate import Evaluated, Evaluation, Quality
from export.evaluation.scores import Estimate, Interval


def print_evaluation(evaluation: Evaluation) -> None:
    """For people: a row for each model, and one for each of its texts."""
    console = Console()
    if not console.is_terminal:  # a file has no width
        console.width = 160
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
        verdict = "passed" if model.control_passed else "[bold red]FAILED[/]"
        console.print(
            f"control {verdict}: {escape(model.name)} has nll {model.shuffled_nll:.2f} on the same tokens in any "
            f"other order, where none is below {model.shuffled_least:.2f}",
            highlight=False,
            soft_wrap=True,
        )


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
