"""Quantizes a checkpoint with torchao by rounding to nearest, a few rows at a time.

Groups lie along a row, so the rows of a weight are independent: quantizing them in pieces gives bit for bit what
torchao gives for the whole model loaded in float32, and a piece that fits the processor's cache is several times
faster than a whole tensor. Knows nothing of graphs or files to be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import IntxWeightOnlyConfig, quantize_

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.phi3 import role
from checkpoints.untied import Untied
from export.quantization.recipe import Recipe

# 64 rows of 3072 float32 are 768 KiB: with torchao's temporaries about a second-level cache. Measured on two cores,
# one thread: 64 rows 0.18 s, 512 rows 0.49 s, all 8192 rows 1.84 s for the same weight.
CHUNK_ELEMENTS = 64 * 3072


class Quantized(Protocol):
    """What later stages read: an untied model whose weights arrive quantized, a few rows at a time."""

    config: ModelConfig
    recipe: Recipe
    notes: tuple[str, ...]  # sentences worth telling

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows start … stop of a weight, in order: torchao tensors, or plain float32 where nothing is quantized."""
        ...


def quantize_rows(rows: Tensor, config: AOBaseConfig) -> Tensor:
    """Quantize a piece of a weight [rows, columns], any float dtype, to a torchao tensor of the same shape."""
    holder: nn.Module
    if isinstance(config, IntxWeightOnlyConfig):
        holder = nn.Embedding(rows.shape[0], rows.shape[1], device="meta")
    else:
        holder = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(rows.to(torch.float32), requires_grad=False)
    quantize_(holder, config, filter_fn=lambda module, _: module is holder)
    return holder.weight.detach()


class Quantizing:
    """Quantizes an untied checkpoint as it is read. Memory: one piece of CHUNK_ELEMENTS and its temporaries."""

    def __init__(self, untied: Untied, recipe: Recipe) -> None:
        recipe.check(untied.config)
        self.untied, self.recipe, self.config = untied, recipe, untied.config
        self.notes: tuple[str, ...] = ()

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        weight = self.untied.tensor(name)
        config = self.recipe.torchao_config(role(name))
        columns = weight.shape[1] if weight.dim() == 2 else 1
        step = max(1, CHUNK_ELEMENTS // columns)
        for at in range(start, stop, step):
            piece = weight[at : min(at + step, stop)]
            result = piece.to(torch.float32) if config is None else quantize_rows(piece, config)
            # A NaN or Inf weight makes its group's scale NaN or Inf, so the scales tell without another pass.
            if not torch.isfinite(getattr(result, "scale", result)).all():
                row = at + int((~torch.isfinite(piece.float())).flatten().nonzero()[0]) // columns
                raise BadInput(f"{self.untied.checkpoint.folder}: {name} has a NaN or Inf in row {row}")
            yield result
        self.untied.release(name)
