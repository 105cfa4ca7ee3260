"""How much a verification compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Extent:
    """How much is compared."""

    tokens: int = 128  # of the text, from position 0 on
    text: Path | None = None  # in UTF-8; None: the checkpoint's heldout.txt, else a page of English
    short: bool = False  # fewer ways of feeding
    long: bool = False  # also beyond original_max_position_embeddings


SHORT = Extent(tokens=40, short=True)  # what an export ends with
