"""A quantized checkpoint with the face of a `.pte`'s weights, to be run in its place before there is one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from checkpoints.families import tensor_shapes
from checkpoints.roles import EMBEDDING
from export.ptefile.weights import DecodedRows
from export.quantization.rounding import QuantizedSource, Rounded


class KeptWeights:
    """What `stream_logits` takes as `file`; see `export.ptefile.weights.FileWeights`."""

    def __init__(self, opened: QuantizedSource) -> None:
        self._opened = opened
        self._shapes = tensor_shapes(opened.config)

    @property
    def rounds_activations(self) -> bool:
        return self._opened.recipe.quantized

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[DecodedRows]:
        for rows in self._opened.rows(name, start, self._shapes[name][0] if stop is None else stop):
            if isinstance(rows, Rounded):
                values, scale, bits = rows.dequantize(), rows.scales.to(torch.float32), rows.storage.bits
            else:
                values, scale, bits = rows.to(torch.float32), None, 32
            yield DecodedRows(start, values, scale, bits)
            start += len(values)

    def embedding_rows(self, tokens: list[int]) -> Tensor:
        return torch.cat([next(self.pieces(EMBEDDING, token, token + 1)).values for token in tokens])

    def prefetch(self, name: str) -> None:
        """Nothing: the system reads ahead where pieces follow each other."""
