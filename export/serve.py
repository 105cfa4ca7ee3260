"""Serves `.pte` files as OpenAI's API does: `python -m export.serve FILE…`, then any OpenAI client at
http://127.0.0.1:8000/v1.

Chats and completions, streamed or not, with tools, JSON schemas and log probabilities, and with pictures and sound
where a file takes them. Each file is a model with `--parallel` conversations, which have a KV cache each and, in our
engine, the weights in common; a request goes where most of its prompt lies already.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from checkpoints.errors import BadInput, run
from export.engine.native_output import hushed
from export.flags import FILE_HELP, command_parser
from export.progress import quiet
from export.ptefile.find import resolve_file
from export.ptefile.magic import read_head

API_KEY = "POCKETPHI_API_KEY"  # of the environment: other users see the arguments of a process
TAKES = {"image": "takes pictures", "audio": "takes sound"}
CRASH = "ExecuTorch's runtime ended the process on one of the files"


def serve(
    files: Sequence[str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_name: Sequence[str] | None = None,
    max_model_len: int | None = None,
    api_key: Sequence[str] | None = None,
    parallel: int = 1,
    max_queue: int = 64,
    engine: Literal["ours", "wheel"] | None = None,
    packed: str | os.PathLike[str] | None = None,
    threads: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    ui: bool = False,
    allow_remote_media: bool = False,
    verbose: bool = False,
) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code. BadInput for what cannot be served, before it listens.

    `packed` is the folder of our engine's packed weights, by default one in the user's cache. With
    `allow_remote_media` pictures are fetched from where a request says they are, of public hosts only.
    """
    console = Console(stderr=True)
    with hushed(CRASH, verbose):
        try:
            from export.server.listening import bind, listen, url
            from export.server.settings import Settings
        except ImportError as problem:
            raise BadInput(f"serving needs more packages ({problem}): `uv sync --extra serve`") from None

        if ui and find_spec("gradio") is None:
            raise BadInput("--ui needs more packages (No module named 'gradio'): `uv sync --extra ui`")
        settings = Settings(host, port, tuple(api_key or ()), max_queue, allow_remote_media=allow_remote_media)
        settings.check()
        if parallel < 1:
            raise BadInput(f"--parallel must be at least 1, it is {parallel}")
        given = [resolve_file(file) for file in files]
        for path in given:
            read_head(path)
        with bind(settings) as taken, console.status("loading") as status:
            from export.server.app import make_app  # imports torch
            from export.server.models import name_models, open_models, opener

            paths = name_models(given, list(served_model_name or ()))
            folder, words = (None if path is None else Path(path) for path in (packed, tokenizer))
            open_one = opener(engine, folder, threads, max_model_len, words)
            models = open_models(paths, parallel, max_queue, open_one, lambda step: status.update(escape(step)))
            app = make_app(models, settings)
            if ui:
                status.update("making the page")
                from export.server.page import add_page  # imports Gradio

                add_page(app, models, settings)

            def ready() -> None:
                status.stop()
                for model in models.values():
                    takes = "".join(f", {TAKES[kind]}" for kind in model.modalities if kind in TAKES)
                    facts = f"context {model.context}, {parallel} at once{takes}"
                    console.print(f"{model.name}: {facts}", highlight=False)
                if ui:
                    console.print(f"{url(taken)}/ is the page", highlight=False)
                console.print(f"{url(taken)}/v1 answers; Ctrl-C ends it", highlight=False)

            return listen(app, taken, ready, verbose)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module docstring."""
    parser = command_parser("serve", __doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help=f"{FILE_HELP}; each is a model")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s); others need --api-key")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: %(default)s; 0: any free one")
    parser.add_argument(
        "--served-model-name", action="append", metavar="NAME", help="once for each FILE (default: its own name)"
    )
    parser.add_argument("--max-model-len", type=int, metavar="N", help="tokens of context (default: the file's)")
    parser.add_argument(
        "--api-key", action="append", metavar="KEY", help=f"asked of clients; may be repeated (default: {API_KEY})"
    )
    parser.add_argument(
        "--parallel", type=int, default=1, metavar="N", help="answers at once, for each FILE (default: %(default)s)"
    )
    parser.add_argument(
        "--max-queue",
        type=int,
        default=64,
        metavar="N",
        help="requests that wait, for each FILE (default: %(default)s)",
    )
    parser.add_argument("--engine", choices=("ours", "wheel"), help="default: ours where a C++ compiler is")
    parser.add_argument(
        "--packed", metavar="DIR", help="where our engine keeps packed weights (default: in the cache)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of our engine (default: one for each core)"
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the one beside each file")
    parser.add_argument("--ui", action="store_true", help="a page to chat on, at /; it asks for the API's key")
    parser.add_argument(
        "--allow-remote-media",
        action="store_true",
        help="fetch pictures that a request names by http or https URL, from hosts of the public internet",
    )
    parser.add_argument("--verbose", action="store_true", help="log every request, and what the runtime says")
    flags = vars(parser.parse_args(argv))
    if flags["api_key"] is None and (key := os.environ.get(API_KEY)):
        flags["api_key"] = [key]
    quiet(flags["verbose"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, until the server listens
    return serve(**flags)


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
