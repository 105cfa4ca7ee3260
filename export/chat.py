"""Talk to a `.pte` in the terminal: `python -m export.chat FILE`.

With a pipe in place of the terminal every line is a turn, and only answers are printed; lines `/image FILE` and
`/audio FILE` go with the one after them. Our C++ engine keeps its packed weights in the user's cache, so that the
next start takes no time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from checkpoints.errors import run
from export.engine.native_output import hushed, to_nothing
from export.flags import FILE_HELP, add_choosing, command_parser
from export.progress import quiet
from export.ptefile.find import resolve_file
from export.ptefile.magic import read_head


def chat(
    file: str | os.PathLike[str],
    *,
    system: str | None = None,
    engine: Literal["ours", "wheel"] | None = None,
    packed: str | os.PathLike[str] | None = None,
    pack: bool = True,
    threads: int = 0,
    context: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    schema: str | None = None,
    stop: Sequence[str] | None = None,
    verbose: bool = False,
    **choosing: Any,
) -> None:
    """Talk on stdin and stdout; `choosing` are fields of `export.engine.choosing.Choosing`."""
    path = resolve_file(file)
    with hushed(f"{path}: ExecuTorch's runtime ended the process on this file", verbose):
        from export.engine.choosing import Choosing
        from export.engine.feeder import packed_folder
        from export.terminal.opening import open_in_terminal, read_schema
        from export.terminal.talk import check_terminal, talk

        asked = Choosing(**choosing, stop=tuple(stop or ()), schema=None if schema is None else read_schema(schema))
        asked.check()
        read_head(path)
        check_terminal()
        folder = None if not pack or (engine == "wheel" and packed is None) else packed_folder(packed)
        words = None if tokenizer is None else Path(tokenizer)
        with open_in_terminal(path, engine, folder, threads, context, words) as conversation:
            talk(conversation, path.name, system, asked)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("chat", __doc__)
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the first turn")
    add_choosing(parser)
    parser.add_argument(
        "--schema", metavar="FILE", help='a JSON schema that answers follow, or "json": any JSON object'
    )
    parser.add_argument(
        "--engine",
        choices=("ours", "wheel"),
        help="our C++ engine (default where a C++ compiler is) or the runtime of the executorch package",
    )
    parser.add_argument(
        "--packed", metavar="DIR", help="where packed weights are kept (default: in the user's cache)"
    )
    parser.add_argument("--no-packed", dest="pack", action="store_false", help="keep no packed weights")
    parser.add_argument("--threads", type=int, metavar="N", default=0, help="default: one for each performance core")
    parser.add_argument("--context", type=int, metavar="N", help="fewer tokens than the file's context")
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the one beside the file")
    parser.add_argument("--verbose", action="store_true", help="show the runtime's logs")
    flags = vars(parser.parse_args(argv))
    quiet(flags["verbose"])
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        chat(**flags)
    except BrokenPipeError:  # whoever read the answers has left
        to_nothing(sys.stdout.fileno())
        return 1
    return 0


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
