"""How good a `.pte` is, from the file itself: `python -m export.evaluate FILE… --checkpoint C`.

Perplexity on text, and with --checkpoint how far the file is from it (KL in nats, how often both find the same token
likeliest), each with its standard error over windows. A file is run by the wheel's C++ runtime as on phones, a
checkpoint by transformers in float32. Several files and checkpoints stand beside each other, with the difference from
the first on the same windows. As a control every window's tokens are also taken in any other order, where no model
can be better than their entropy and one that knows the language must be worse than on the text: else exit code 1.

--save keeps what was found beside each file as NAME.evaluation.json: `export.evaluation.record`.

With --tasks a `.pte` answers tasks of lm-evaluation-harness instead: `export.evaluation.harness`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.errors import BadInput, run
from export.engine.native_output import hushed
from export.flags import command_parser
from export.progress import Counting, counting, quiet
from export.ptefile.find import resolve_name

if TYPE_CHECKING:
    from export.evaluation.evaluate import Evaluation

CRASH = "ExecuTorch's runtime ended the process on one of the files"
FOR_TEXTS = ("checkpoint", "text", "window", "chart", "speed")
FOR_TASKS = ("include", "chat", "resume", "parallel")
WINDOW = 512  # tokens, as on the page of Phi-4-mini's published int4 file


def evaluate(
    models: Sequence[str],
    checkpoint: str | None = None,
    *,
    text: Sequence[str | os.PathLike[str]] | None = None,
    window: int = WINDOW,
    limit: int | None = None,
    chart: str | os.PathLike[str] | None = None,
    speed: bool = False,
    save: bool = False,
    progress: Counting = lambda what, done, of: None,
) -> Evaluation:
    """Evaluate `.pte` files and checkpoints (as --checkpoint takes them) on the same windows of text.

    `checkpoint` is the reference, `text` files in UTF-8 in place of ours, `limit` the windows of each text at most.
    `speed` times decoding with each file, too, `save` keeps the numbers beside each file.
    """
    for name, number, least in (("--window", window, 2), ("--limit", limit, 1)):
        if number is not None and number < least:
            raise BadInput(f"{name} must be at least {least}, it is {number}")
    with hushed(CRASH):
        from checkpoints.texts import find_texts
        from export.evaluation.chart import check_chart, draw
        from export.evaluation.evaluate import evaluate_texts, with_speed
        from export.evaluation.models import FileModel, open_model
        from export.evaluation.record import check_saving, perplexity_part, save_evaluation
        from export.evaluation.speed import check_speed

        models = [resolve_name(name) for name in models]
        files = check_saving(models) if save else {}
        if chart is not None:
            check_chart(Path(chart))
        texts = find_texts("evaluation", text)
        opened = [open_model(name) for name in models]
        if speed:
            check_speed([model for model in opened if isinstance(model, FileModel)])
        reference = None
        if checkpoint is not None:
            same = [model for name, model in zip(models, opened, strict=True) if name == checkpoint]
            reference = same[0] if same else open_model(checkpoint)
        evaluation = evaluate_texts(opened, reference, texts, window, limit, progress)
        if speed:
            evaluation = with_speed(evaluation, opened, progress)
        if chart is not None:
            draw(evaluation, Path(chart))
        for name, found in zip(models, evaluation.models, strict=True):
            if name in files:
                save_evaluation(files[name], perplexity_part(evaluation, found))
        return evaluation


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
    parser.add_argument(
        "--chart", metavar="FILE", help="draw quality against bytes, and with --speed time (.png, .svg, .pdf)"
    )
    parser.add_argument("--speed", action="store_true", help="time decoding with each .pte, too")
    parser.add_argument("--save", action="store_true", help="keep the numbers beside each .pte: NAME.evaluation.json")
    parser.add_argument(
        "--tasks", metavar="LIST", type=lambda names: names.split(","), help="of lm-evaluation-harness"
    )
    parser.add_argument("--include", metavar="DIR", help="with more tasks, as YAML")
    parser.add_argument("--chat", action="store_true", help="ask tasks by the chat template")
    parser.add_argument("--resume", metavar="DIR", help="keep answers to tasks there, and do not ask again")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="processes for tasks (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the result for a program")
    flags = vars(parser.parse_args(argv))
    _check_flags(flags, {name: parser.get_default(name) for name in flags})
    quiet(verbose=False)
    return (_tasks if flags["tasks"] else _texts)(flags)


def _check_flags(flags: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise BadInput for a flag that would do nothing: some are for texts, others for tasks."""
    ignored, why = (FOR_TEXTS, "not for --tasks") if flags["tasks"] else (FOR_TASKS, "for --tasks")
    for name in ignored:
        if flags[name] != defaults[name]:
            raise BadInput(f"--{name} is {why}")


def _texts(flags: dict[str, Any]) -> int:
    with counting() as progress:
        evaluation = evaluate(
            **{name: flags[name] for name in ("models", "limit", "save", *FOR_TEXTS)}, progress=progress
        )
    if flags["json"]:
        from export.evaluation.evaluate import plain

        print(json.dumps(plain(evaluation), indent=2))
    else:
        from export.evaluation.tables import print_evaluation

        print_evaluation(evaluation)
    return 0 if all(model.control_passed for model in evaluation.models) else 1


def _tasks(flags: dict[str, Any]) -> int:
    from export.evaluation.harness import answer_tasks, controls_passed
    from export.evaluation.tables import print_tasks

    with hushed(CRASH):
        results = answer_tasks(**{name: flags[name] for name in ("models", "tasks", "limit", "save", *FOR_TASKS)})
    print(json.dumps(results, indent=2)) if flags["json"] else print_tasks(results)
    return 0 if controls_passed(results) else 1


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
