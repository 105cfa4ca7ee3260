"""Whether a file can be run here at all, which is better known before than after minutes of work."""

from __future__ import annotations

from pathlib import Path

from checkpoints.errors import BadInput
from export.engine.memory import memory_left

LATER = "--no-verify skips this, python -m export.verify does it later"


def check_memory(file: Path, needed: int, what: str = "verifying", way_on: str = LATER) -> None:
    """Raise BadInput where a file that takes `needed` bytes to run cannot be run here: it would be killed midway."""
    if needed > (left := memory_left()):
        raise BadInput(
            f"{what} {file} takes about {needed / 1e9:.1f} GB of memory, {left / 1e9:.1f} GB are left: {way_on}"
        )
