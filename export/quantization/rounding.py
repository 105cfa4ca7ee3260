"""Quantizes a checkpoint by rounding to nearest, a few rows at a time.

Groups lie along a row, so the rows of a weight are independent, and a piece that fits the processor's cache is
several times faster than a whole tensor. The arithmetic is torchao 0.18's, bit for bit (tests compare it with torchao
on the whole model), without its temporaries: a third of the time. Knows nothing of graphs or files to be written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.untied import Untied
from export.quantization.recipe import INT4, Recipe, Storage

if TYPE_CHECKING:
    from torchao.quantization import IntxUnpackedToInt8Tensor

# 128 rows of 3072 float32 are 1.5 MiB: with temporaries about a second-level cache.
CHUNK_ELEMENTS = 128 * 3072
TINY = torch.finfo(torch.float32).smallest_normal  # the least scale, as torchao has it


@dataclass(frozen=True)
class Rounded:
    """Some rows of a weight as levels times scales."""

    levels: Tensor  # int8 [rows, columns]
    scales: Tensor  # [rows, groups] of storage.scale_dtype
    storage: Storage

    def dequantize(self) -> Tensor:
        """float32 [rows, columns]."""
        scales = self.scales.to(torch.float32).unsqueeze(-1)
        return (self.levels.view(*self.scales.shape, -1) * scales).view(self.levels.shape)

    def as_torchao(self) -> IntxUnpackedToInt8Tensor:
        """The same as torchao holds it."""
        from torchao.quantization import IntxUnpackedToInt8Tensor

        storage = self.storage
        return IntxUnpackedToInt8Tensor(
            self.levels,
            self.scales,
            torch.zeros_like(self.scales, dtype=torch.int8),
            INT4 if storage.bits == 4 else torch.int8,
            (1, storage.columns // storage.groups),
            torch.float32,
            None if storage.embedding else "int8_asym_per_token",
        )


class QuantizedSource(Protocol):
    """What later stages read: an untied model whose weights arrive quantized, a few rows at a time."""

    config: ModelConfig
    recipe: Recipe
    notes: tuple[str, ...]  # sentences worth telling, those of the config too
    files: list[Path]  # of weights

    def rows(self, name: str, start: int, stop: int) -> Iterator[Rounded | Tensor]:
        """Rows start … stop of a weight, in order; plain float32 where nothing is quantized."""
        ...


def round_rows(rows: Tensor, storage: Storage) -> Rounded:
    """Round a piece of a weight [rows, columns], any float dtype, to nearest.

    A group's scale is its largest magnitude over 7.5 or 127.5, in the dtype it is stored in; values are multiplied by
    the scale's reciprocal in that same dtype. NaN or Inf in a group make its scale NaN or Inf.
    """
    most = (1 << storage.bits - 1) - 0.5
    x = rows.to(torch.float32).view(len(rows), storage.groups, -1)
    scales = x.abs().amax(-1, keepdim=True).div_(most).clamp_(min=TINY).to(storage.scale_dtype)
    levels = torch.mul(x, 1.0 / scales).round_().clamp_(-most - 0.5, most - 0.5).to(torch.int8)
    return Rounded(levels.view(rows.shape), scales.squeeze(-1), storage)


class Quantizing:
    """Quantizes an untied checkpoint as it is read. Memory: one piece of CHUNK_ELEMENTS and its temporaries."""

    def __init__(self, untied: Untied, recipe: Recipe) -> None:
        recipe.check(untied.config)
        self.untied, self.recipe, self.config = untied, recipe.resolved(untied.config), untied.config
        self.notes = untied.config.notes
        self.files = untied.checkpoint.files

    def rows(self, name: str, start: int, stop: int) -> Iterator[Rounded | Tensor]:
        columns = math.prod(self.untied.shape(name)[1:])
        storage = self.recipe.storage(name, columns)
        step = max(1, CHUNK_ELEMENTS // columns)
        for at in range(start, stop, step):
            piece = self.untied.rows(name, at, min(at + step, stop))
            result = piece.to(torch.float32) if storage.bits == 32 else round_rows(piece, storage)
            # A NaN or Inf weight makes its group's scale NaN or Inf, so the scales tell without another pass.
            if not torch.isfinite(result.scales if isinstance(result, Rounded) else result).all():
                row = at + int((~torch.isfinite(piece.float())).flatten().nonzero()[0]) // columns
                raise BadInput(f"{self.untied.origin(name)}: {name} has a NaN or Inf in row {row}")
            yield result
        self.untied.release(name)
