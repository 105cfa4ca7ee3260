"""Writes a checkpoint for upstream's own loader: `python -m export.remap --checkpoint C --out DIR`.

Names and layout are those of ExecuTorch's Phi-4-mini, see `export.models.phi3.layout`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from checkpoints.errors import run
from checkpoints.source import resolve
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.flags import stage_parser
from export.models.remapped import write_remapped
from export.progress import bar, quiet


def remap(checkpoint: str | None = None, *, out: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Write a checkpoint (hub id, folder or "phi4-tiny") for upstream's llama loader at `out`."""
    opened = Untied(open_checkpoint(resolve(checkpoint, revision).folder))
    write_remapped(opened, Path(out), partial(bar, "remap"))
    return Path(out)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module docstring."""
    flags = vars(stage_parser("remap", __doc__).parse_args(argv))
    quiet(verbose=False)
    print(remap(**flags))


command = partial(run, main)  # the script of pyproject.toml

if __name__ == "__main__":
    command()
