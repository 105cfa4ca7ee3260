"""How good a `.pte` is, from the file itself: `python -m export.evaluate FILE… --checkpoint C`.

Perplexity on text, and with --checkpoint how far the file is from it (KL in nats, how often both find the same token
likeliest), each with its standard error over windows. A file is run by the wheel's C++ runtime as on phones, a
checkpoint by transformers in float32. Several files and checkpoints stand beside each other, with the difference from
the first on the same windows. As a control every window's tokens are also taken in any other order, where no model
can be better than their entropy and one that knows the language must be worse than on the text: else exit code 1.

With --tasks a `.pte` answers tasks of lm-evaluation-harness instead: `export.evaluation.harness`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from checkpoints.errors import BadInput, run
from export.engine.native_output import hushed
from export.flags import command_parser
from export.progress import quiet
from export.ptefile.find import resolve_name

if TYPE_CHECKING:
    from export.evaluation.evaluate import Evaluation, Quality
    from export.evaluation.scores import Estimate, Interval

CRASH = "ExecuTorch's runtime ended the process on one of the files"
WINDOW = 512  # tokens, as on the page of Phi-4-mini's published int4 file


def evaluate(
    models: Sequence[str],
    checkpoint: str | None = None,
    *,
    text: Sequence[str | os.PathLike[str]] | None = None,
    window: int = WINDOW,
    limit: int | None = None,
    chart: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """Evaluate `.pte` files and checkpoints (as --checkpoint takes them) on the same windows of text.

    `checkpoint` is the reference, `text` files in UTF-8 in place of ours, `limit` the windows of each text at most.
    """
    for name, number, least in (("--window", window, 2), ("--limit", limit, 1)):
        if number is not None and number < least:
            raise BadInput(f"{name} must be at least {least}, it is {number}")
    with hushed(CRASH):
        from checkpoints.texts import find_texts
        from export.evaluation.chart import draw
        from export.evaluation.evaluate import evaluate_texts
        from export.evaluation.models import open_model

        texts = find_texts("evaluation", text)
        opened = [open_model(resolve_name(name)) for name in models]
        reference = None
        if checkpoint is not None:
            same = [model for name, model in zip(models, opened, strict=True) if name == checkpoint]
            reference = same[0] if same else open_model(checkpoint)
        evaluation = evaluate_texts(opened, reference, texts, window, limit, progress)
        if chart is not None:
            draw(evaluation, Path(chart))
        return evaluation


def print_evaluation(evaluation: Evaluation) -> None:
    """For people: a row for each model, and one for each of its texts."""
    console = Console()
    against = f", against {evaluation.reference}" if evaluation.reference else ""
    console.print(
        f"{evaluation.tokens} tokens in {evaluation.windows} windows of {evaluation.window_tokens}"
        f"{escape(against)}; ± is a standard error",
        highlight=False,
    )
    columns = ["", "MB", "perplexity", "nll"] + ["KL, nats", "top-1"] * (evaluation.reference is not None)
    table = Table(*(Column(name, no_wrap=True) for name in columns), box=SIMPLE_HEAD, pad_edge=False)
    for model in evaluation.models:
        table.add_row(f"[bold]{escape(model.name)}", f"{model.bytes / 1e6:,.1f}", *_cells(model.quality))
        for text, quality in model.by_text.items() if len(model.by_text) > 1 else ():
            table.add_row(f"  {escape(text)}", "", *_cells(quality))
    console.print(table)
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


def _number(estimate: Estimate, digits: int, scale: float = 1) -> str:
    error = "" if estimate.error is None else f" ± {scale * estimate.error:.{digits}f}"
    return f"{scale * estimate.value:.{digits}f}{error}"


def _interval(interval: Interval) -> str:
    bounds = "" if interval.low is None else f" (95 %: {interval.low:+.4f} to {interval.high:+.4f})"
    return f"{interval.value:+.4f}{bounds}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module docstring."""
    parser = command_parser("evaluate", __doc__)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="FILE",
        help=".pte files (hf:USER/NAME too), or checkpoints as --checkpoint takes them",
    )
    parser.add_argument("--checkpoint", metavar="C", help="the reference for KL and top-1, mostly what a file is of")
    parser.add_argument("--text", action="append", metavar="FILE", help="in place of our four texts; may be repeated")
    parser.add_argument("--window", type=int, default=WINDOW, metavar="N", help="tokens (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="windows of a text, or questions of a task, at most")
    parser.add_argument("--chart", metavar="FILE", help="draw quality against bytes (.png, .svg, .pdf)")
    parser.add_argument(
        "--tasks", metavar="LIST", type=lambda names: names.split(","), help="of lm-evaluation-harness"
    )
    parser.add_argument("--include", metavar="DIR", help="with more tasks, as YAML")
    parser.add_argument("--chat", action="store_true", help="ask tasks by the chat template")
    parser.add_argument("--resume", metavar="DIR", help="keep answers to tasks there, and do not ask again")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="processes for tasks (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the result for a program")
    flags = vars(parser.parse_args(argv))
    quiet(verbose=False)
    as_json, asked = (
        flags.pop("json"),
        {key: flags.pop(key) for key in ("tasks", "include", "chat", "resume", "parallel")},
    )
    with Console(stderr=True).status("reading") as status:
        if asked["tasks"]:
            from export.evaluation.harness import answer_tasks

            with hushed(CRASH):
                results: dict[str, Any] = answer_tasks(flags["models"], flags["limit"], **asked)
        else:
            evaluation = evaluate(**flags, progress=lambda step: status.update(escape(step)))
    if asked["tasks"]:
        from export.evaluation.harness import print_tasks

        print(json.dumps(results, indent=2)) if as_json else print_tasks(results)
        return 0
    if as_json:
        from export.evaluation.evaluate import plain

        print(json.dumps(plain(evaluation), indent=2))
    else:
        print_evaluation(evaluation)
    return 0 if all(model.control_passed for model in evaluation.models) else 1


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
