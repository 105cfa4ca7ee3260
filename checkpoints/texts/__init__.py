"""Texts to calibrate and to evaluate with: the project's own excerpts (README.md says whence), or a user's files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from checkpoints.errors import BadInput

Use = Literal["calibration", "evaluation"]


def find_texts(use: Use, files: Sequence[str | os.PathLike[str]] | None = None) -> dict[str, str]:
    """Kind of text -> text, of ours for this use; with `files`, those in their place by their names.

    BadInput for a file that cannot be read or is not UTF-8, and for two of one name.
    """
    if not files:
        return {path.stem: read_text(path) for path in sorted(Path(__file__).with_name(use).glob("*.txt"))}
    found: dict[str, str] = {}
    for path in map(Path, files):
        if path.name in found:
            raise BadInput(f"{path} has the name of another text, results are told by their names")
        found[path.name] = read_text(path)
    return found


def read_text(path: Path) -> str:
    """The file's text; BadInput where there is none in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not text in UTF-8") from None
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
