"""Answers a prompt with a `.pte`, by the C++ runner the phone apps use: `python -m export.generate FILE "prompt"`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from checkpoints.errors import run
from export.engine.native_output import hushed, to_nothing
from export.flags import FILE_HELP, command_parser
from export.progress import quiet
from export.ptefile.find import resolve_file
from export.ptefile.magic import read_head

if TYPE_CHECKING:
    from export.engine.generation import Generation


def generate(
    file: str | os.PathLike[str],
    prompt: str,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    system: str | None = None,
    raw: bool = False,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    engine: Literal["runner", "ours"] = "runner",
    packed: str | os.PathLike[str] | None = None,
    draft_tokens: int = 0,
    on_text: Callable[[str], object] = lambda text: None,
    verbose: bool = False,
) -> Generation:
    """Run a `.pte`, also hf:USER/NAME, on a prompt; see `export.engine.generation.answer`.

    `on_text` gets the answer piece by piece.
    """
    words = None if tokenizer is None else Path(tokenizer)
    with hushed(f"{file}: ExecuTorch's runtime ended the process on this file", verbose):
        from export.engine.generation import Request, answer  # imports torch

        folder = None if packed is None else Path(packed)
        request = Request(prompt, system, raw, max_new_tokens, temperature, engine, folder, draft_tokens)
        request.check()
        path = resolve_file(file)
        read_head(path)
        return answer(path, words, request, on_text)


def show_stats(generation: Generation) -> None:
    """A few lines for people on stderr."""
    stats = generation.stats

    def rate(value: float | None) -> str:
        return "faster than can be measured" if value is None else f"{value:,.1f} tokens/s"

    end = "" if generation.ended else ", cut at the limit"
    peak, dirty, own = (
        f"{size / 1e6:,.0f} MB" for size in (stats.peak_resident_bytes, stats.dirty_bytes, stats.model_dirty_bytes)
    )
    lines = {
        "prompt": f"{stats.prompt_tokens} tokens, {rate(stats.prefill_tokens_per_second)}, "
        f"first token after {stats.first_token_ms:,} ms",
        "answer": f"{stats.generated_tokens} tokens{end}, {rate(stats.decode_tokens_per_second)}",
        "loading": f"{stats.load_ms:,} ms",
        "memory": f"{peak} at most, {dirty} dirty with Python and torch, {own} of it for the file",
    }
    if stats.drafted_tokens:
        lines["guesses"] = f"{stats.accepted_tokens} of {stats.drafted_tokens} were right"
    for name, value in lines.items():
        print(f"{name:<8} {value}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("generate", __doc__)
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    parser.add_argument("prompt")
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the one beside the file")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the prompt")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without chat template")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="default: until it ends or the context is full"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", default=0.0, help="0 (default) always takes the likeliest token"
    )
    parser.add_argument(
        "--engine", choices=("runner", "ours"), default="runner", help="upstream's runner (default) or our C++ engine"
    )
    parser.add_argument("--packed", metavar="DIR", help="where our engine keeps packed weights between starts")
    parser.add_argument(
        "--draft-tokens", type=int, metavar="N", default=0, help="our engine guesses ahead at most (default: none)"
    )
    parser.add_argument("--json", action="store_true", help="print answer and measurements for a program, at the end")
    parser.add_argument("--verbose", action="store_true", help="show the runner's logs")
    flags = vars(parser.parse_args(argv))
    quiet(flags["verbose"])
    as_json = flags.pop("json")

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        generation = generate(**flags, on_text=(lambda text: None) if as_json else show)
    except BrokenPipeError:  # whoever read the answer has left
        to_nothing(sys.stdout.fileno())
        return 1
    if as_json:
        print(json.dumps(asdict(generation), indent=2))
    else:
        print()
        show_stats(generation)
    return 0


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
