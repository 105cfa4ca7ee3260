"""Rows of pictures and sound that were encoded, kept for the next prompts until too many others are."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

from checkpoints.errors import BadInput
from export.engine.media_ids import Encoded, row_of


class KeptRows:
    """By first id; at most as many rows as a context has tokens, so that one prompt's always fit together.

    A row is as wide as the embedding in float32: 12 KB of Phi-4-multimodal, a token's keys and values are 64 KB.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[int, tuple[Tensor, int]] = OrderedDict()  # rows and parts, the longest unused first

    def find(self, first_id: int) -> Encoded | None:
        """What is kept under this id; it counts as used now."""
        if first_id not in self._kept:
            return None
        self._kept.move_to_end(first_id)
        rows, parts = self._kept[first_id]
        return Encoded(first_id, len(rows), parts, True, 0.0, 0.0)

    def keep(self, first_id: int, rows: Tensor, parts: int) -> None:
        """Take rows [tokens, D], and drop others where they are too many together."""
        self._kept[first_id] = rows, parts
        while len(self._kept) > 1 and sum(len(kept) for kept, _ in self._kept.values()) > self._most:
            self._kept.popitem(last=False)

    def row(self, media_id: int) -> Tensor:
        """The row [D] that an id stands for; BadInput where it is not kept."""
        first_id, at = row_of(media_id)
        rows = self._kept.get(first_id, (None, 0))[0]
        if rows is None or at >= len(rows):
            raise BadInput(f"the prompt has media id {media_id}, of a picture or sound that is not encoded")
        return rows[at]
