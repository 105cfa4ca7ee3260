"""Files that go to a device, read once for their size and hash. Knows no device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import BadInput


@dataclass(frozen=True)
class Local:
    """A file to be put on a device; its hash was taken before any push."""

    path: Path
    name: str  # on the device
    size_bytes: int
    sha256: str


def local_file(path: Path, name: str | None = None) -> Local:
    """Read a file once for its size and hash."""
    digest, count = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
                count += len(piece)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    return Local(path, name or path.name, count, digest.hexdigest())
