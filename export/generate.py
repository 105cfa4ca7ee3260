"""Answers a prompt with a `.pte`, by the C++ runner the phone apps use: `python -m export.generate FILE "prompt"`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from checkpoints.errors import run
from export.engine.native_output import hushed, to_nothing
from export.flags import FILE_HELP, command_parser
from export.progress import counting, quiet
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
    media: Sequence[tuple[Literal["image", "audio"], str | os.PathLike[str]]] = (),
    on_text: Callable[[str], object] = lambda text: None,
    verbose: bool = False,
) -> Generation:
    """Run a `.pte`, also hf:USER/NAME, on a prompt; see `export.engine.generation.answer`.

    `media` are files of pictures and sound in the order of the prompt, with which `export.engine.media_generation`
    answers. `on_text` gets the answer piece by piece.
    """
    words = None if tokenizer is None else Path(tokenizer)
    with hushed(f"{file}: ExecuTorch's runtime ended the process on this file", verbose):
        from export.engine.generation import Request, answer  # imports torch

        folder = None if packed is None else Path(packed)
        files = tuple((kind, Path(name)) for kind, name in media)
        request = Request(prompt, system, raw, max_new_tokens, temperature, engine, folder, draft_tokens, files)
        request.check()
        path = resolve_file(file)
        read_head(path)
        if not files:
            return answer(path, words, request, on_text)
        from export.engine.media_generation import answer_media

        with ExitStack() as bar:
            count = bar.enter_context(counting(passing=True))

            def take(text: str) -> None:
                bar.close()  # the screen is the answer's
                on_text(text)

            return answer_media(path, words, request, take, partial(count, "encoding"))


def show_stats(generation: Generation) -> None:
    """A few lines for people on stderr."""
    stats = generation.stats

    def rate(value: float | None) -> str:
        return "faster than can be measured" if value is None else f"{value:,.1f} tokens/s"

    end = "" if generation.ended else ", cut at the limit"
    peak, dirty, own = (
        f"{size / 1e6:,.0f} MB" for size in (stats.peak_resident_bytes, stats.dirty_bytes, stats.model_dirty_bytes)
    )
    from export.engine.media_prompt import NAMES, describe

    mode = f" in mode {stats.mode}" if stats.mode != "text" else ""
    lines = {f"{NAMES[one.kind]} {one.number}": describe(one) for one in stats.media} | {
        "prompt": f"{stats.prompt_tokens} tokens{mode}, {rate(stats.prefill_tokens_per_second)}, "
        f"first token after {stats.first_token_ms:,} ms",
        "answer": f"{stats.generated_tokens} tokens{end}, {rate(stats.decode_tokens_per_second)}",
        "loading": f"{stats.load_ms:,} ms",
        "memory": f"{peak} at most, {dirty} dirty with Python and torch, {own} of it for the file",
    }
    if stats.drafted_tokens:
        lines["guesses"] = f"{stats.accepted_tokens} of {stats.drafted_tokens} were right"
    width = max(8, *map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}} {value}", file=sys.stderr)


class _InOrder(argparse.Action):
    """Keeps the files of --image and --audio in one list, as they stand on the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.media = [*namespace.media, (self.const, values)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("generate", __doc__)
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    parser.add_argument("prompt", nargs="?", help="may be left out where a picture or a sound says it")
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
        "--engine",
        choices=("runner", "ours"),
        default="runner",
        help="upstream's runner (default; its runtime with "
        "our sampler where --image or --audio is given) or our C++ engine",
    )
    parser.add_argument("--packed", metavar="DIR", help="where our engine keeps packed weights between starts")
    parser.add_argument(
        "--draft-tokens", type=int, metavar="N", default=0, help="our engine guesses ahead at most (default: none)"
    )
    where = "before the text, or where the prompt says"
    parser.add_argument(
        "--image", dest="media", metavar="PATH", action=_InOrder, const="image", default=[],
        help=f"a picture, {where} <|image_1|>; may be given several times, --audio too",
    )  # fmt: skip
    parser.add_argument(
        "--audio",
        dest="media",
        metavar="PATH",
        action=_InOrder,
        const="audio",
        default=[],
        help=f"a sound, {where} <|audio_1|>",
    )
    parser.add_argument("--json", action="store_true", help="print answer and measurements for a program, at the end")
    parser.add_argument("--verbose", action="store_true", help="show the runner's logs")
    flags = vars(parser.parse_intermixed_args(argv))  # a prompt also after --image PATH
    if flags["prompt"] is None and not flags["media"]:
        parser.error("the following arguments are required: prompt")
    flags["prompt"] = flags["prompt"] or ""
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
