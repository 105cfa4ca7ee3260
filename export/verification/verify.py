"""Starts a verification: how much of it, and the process that runs the file.

Imports nothing heavy, so that the new process imports the runtime while this one imports the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.errors import BadInput
from export.engine.memory import memory_left
from export.subprocess_call import Child

if TYPE_CHECKING:
    from checkpoints.source import Source
    from export.verification.compare import Report


@dataclass(frozen=True)
class Extent:
    """How much is compared."""

    tokens: int = 128  # of the text, from position 0 on
    text: Path | None = None  # in UTF-8; None: the checkpoint's heldout.txt, else a page of English
    short: bool = False  # fewer ways of feeding
    long: bool = False  # also beyond original_max_position_embeddings


LATER = "--no-verify skips this, python -m export.verify does it later"
SHORT = Extent(tokens=40, short=True)  # what an export ends with


def check_memory(file: Path, needed: int) -> None:
    """Raise BadInput where a file that takes `needed` bytes to run cannot be run here: it would be killed midway."""
    if needed > (left := memory_left()):
        raise BadInput(
            f"verifying {file} takes about {needed / 1e9:.1f} GB of memory, {left / 1e9:.1f} GB are left: {LATER}"
        )


def verify(
    file: Path, source: Source, extent: Extent = Extent(), progress: Callable[[str], None] = lambda step: None
) -> Report:
    """Compare `file` with a checkpoint on a text.

    A wrong file gets a Report that says so; BadInput is for a file that is no `.pte` of this model or that the
    runtime refuses.
    """
    if extent.tokens < 2:
        raise BadInput(f"--tokens must be at least 2, it is {extent.tokens}")
    if not file.is_file():
        raise BadInput(f"{file} is not a file")
    with Child("export.engine.session") as child:  # beside the imports of this process
        from export.verification.compare import compare  # imports torch and transformers

        return compare(file, source, extent, progress, child)
