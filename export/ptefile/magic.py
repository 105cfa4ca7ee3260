"""Whether a file is an ExecuTorch program at all: the little that can be told before executorch is imported."""

from __future__ import annotations

from pathlib import Path

from checkpoints.errors import BadInput

HEAD_BYTES = 64  # enough for the flatbuffer's root, its identifier and the extended header


def read_head(path: Path) -> bytes:
    """The first HEAD_BYTES of a `.pte`; BadInput where the file cannot be read or is no ExecuTorch program."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{path} does not exist") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder, not a .pte file") from None
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    if head[4:6] != b"ET":
        raise BadInput(f"{path} is not an ExecuTorch program: bytes 4 to 8 are {head[4:8]!r}, not ET12")
    return head
