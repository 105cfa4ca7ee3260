"""Publishes a `.pte` with what goes with it and a model card: `python -m export.push FILE --repo USER/NAME`.

Everything is checked before the first byte is sent: that the manifest is this file's, that tokenizer and chat
template are those it lists, that the file passed its verification. A repository is private unless --public is given.
An upload that was interrupted goes on when the command is run again. --dry-run shows the card and sends nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput, run
from export.engine.native_output import hushed
from export.flags import command_parser
from export.progress import quiet


@dataclass(frozen=True)
class Sent:
    """One file of the repository."""

    path: str
    bytes: int
    sha256: str
    there: bool | None  # and not sent; None where the hub was not asked


@dataclass(frozen=True)
class Pushed:
    """What was, or with a dry run would be, published."""

    repo: str
    revision: str
    public: bool
    url: str | None  # None: a dry run
    commit: str | None  # None: a dry run, or nothing was to be changed
    files: tuple[Sent, ...]
    card: str
    notes: tuple[str, ...]


def push(
    file: str | os.PathLike[str],
    *,
    repo: str,
    revision: str = "main",
    public: bool = False,
    quantized: str | os.PathLike[str] | None = None,
    bench: Sequence[str | os.PathLike[str]] = (),
    license: str | None = None,
    base_model: str | None = None,
    unverified: bool = False,
    replace_card: bool = False,
    dry_run: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Pushed:
    """Publish `file` at `repo` (USER/NAME), or with `dry_run` say what would be.

    `revision` is a branch, `quantized` the kept checkpoint the file is of, `bench` measurements for the card in place
    of those beside the file, `license` and `base_model` what the hub calls them, where the checkpoint's card is
    silent. `progress` gets a line for each stage. Raises BadInput for anything wrong with the files or refused by
    the hub.
    """
    from export.hub.card import Place, make_card  # imports torch
    from export.hub.origin import find_origin
    from export.hub.parcel import card_item, gather
    from export.hub.send import Target, check_target, send

    path, target = Path(file), Target(repo, revision, public, replace_card)
    check_target(target, token=not dry_run)
    progress(f"checking {path.name} and what lies beside it")
    kept = None if quantized is None else Path(quantized)
    parcel = gather(path, kept, [Path(result) for result in bench], unverified)
    origin = find_origin(parcel.manifest, license, base_model)
    if public and origin.license is None:
        raise BadInput(f"{'; '.join(origin.notes)}: nothing is made public without one")
    card = make_card(parcel, origin, Place(repo, revision), _kinds(path))
    items = [*parcel.items, card_item(card)]
    if not dry_run:
        progress(f"sending to {target}")
    sent = None if dry_run else send(parcel, items, target)
    files = tuple(
        Sent(item.path, item.bytes, item.sha256, None if sent is None else item.path in sent.there) for item in items
    )
    url, commit = (None, None) if sent is None else (sent.url, sent.commit)
    return Pushed(repo, revision, public, url, commit, files, card, (*parcel.notes, *origin.notes))


def _kinds(path: Path) -> dict[str, int]:
    """Bytes of a file by what they are."""
    with hushed(f"{path}: ExecuTorch's libraries ended the process on this file"):
        from export.ptefile.dissect import read_contents  # imports executorch, which takes seconds
        from export.ptefile.reader import open_pte

        return read_contents(open_pte(path)).kinds


def print_pushed(pushed: Pushed) -> None:
    """For people: the card of a dry run, the files, and where they are."""
    from huggingface_hub import ModelCard
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.syntax import Syntax
    from rich.table import Column, Table

    console = Console()
    if pushed.url is None:
        card = ModelCard(pushed.card)
        console.print(Syntax(card.data.to_yaml(), "yaml", background_color="default"))
        console.print(Markdown(card.text))
        console.rule()
    table = Table("file", Column("bytes", justify="right"), "sha256", "", box=SIMPLE_HEAD, pad_edge=False)
    for file in pushed.files:
        told = {None: "", True: "was there", False: "sent"}[file.there]
        table.add_row(file.path, f"{file.bytes:,}", f"{file.sha256[:12]}…", told)
    console.print(table)
    for note in pushed.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True, highlight=False)
    who = "everyone may read it" if pushed.public else "private"
    place = pushed.repo + ("" if pushed.revision == "main" else f"@{pushed.revision}")
    if pushed.url is None:
        console.print(f"would go to {place} ({who}); nothing was sent", highlight=False, soft_wrap=True)
        return
    commit = f"commit {pushed.commit}" if pushed.commit else "nothing had changed"
    console.print(f"{pushed.url} ({who}), {commit}", highlight=False, soft_wrap=True)
    console.print(f'try it: python -m export.generate hf:{place} "your question"', highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module docstring."""
    parser = command_parser("push", __doc__)
    parser.add_argument("file", metavar="FILE", help="the .pte; manifest and tokenizer lie beside it")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="made where it does not exist")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="made from main (default: %(default)s)")
    parser.add_argument("--public", action="store_true", help="for everyone to read (default: private)")
    parser.add_argument("--quantized", metavar="DIR", help="also the kept checkpoint, as a folder `quantized`")
    parser.add_argument(
        "--bench",
        nargs="+",
        default=[],
        metavar="JSON",
        help="results of export.bench for the card (default: those beside the file)",
    )
    parser.add_argument("--license", metavar="ID", help="of the base model, where its own card is not known: mit, …")
    parser.add_argument("--base-model", metavar="ID", help="on the hub, where the checkpoint was a folder")
    parser.add_argument("--unverified", action="store_true", help="also a file that was not verified, or failed")
    parser.add_argument(
        "--replace-card", action="store_true", help="replace a README.md that is not this file's card"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the card and the files, and send nothing")
    parser.add_argument("--json", action="store_true", help="print everything for a program, the card too")
    flags: dict[str, Any] = vars(parser.parse_args(argv))
    as_json = flags.pop("json")
    quiet(verbose=False)
    pushed = push(**flags, progress=lambda step: print(step, file=sys.stderr))
    if as_json:
        print(json.dumps(asdict(pushed), indent=2))
    else:
        print_pushed(pushed)
    return 0


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
