"""Gives lm_head a weight of its own: `python -m export.untie --checkpoint C --out DIR`.

Writes a Hugging Face checkpoint. An export needs no such copy, see `checkpoints.untied`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from checkpoints.errors import run
from checkpoints.source import resolve
from checkpoints.untied import write_untied
from checkpoints.weights import open_checkpoint
from export.flags import stage_parser
from export.progress import bar, quiet


def untie(checkpoint: str | None = None, *, out: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Write a tied checkpoint (hub id, folder or "phi4-tiny") untied at `out`; see `checkpoints.untied`."""
    write_untied(open_checkpoint(resolve(checkpoint, revision).folder), Path(out), partial(bar, "untie"))
    return Path(out)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module docstring."""
    flags = vars(stage_parser("untie", __doc__).parse_args(argv))
    quiet(verbose=False)
    print(untie(**flags))


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
