"""Chooses scales by the error they leave, where rounding to nearest takes the largest magnitude of a group.

Searches for each group the scale that minimises sum_j importance_j (w_j - scale * level_j)^2 with levels rounded to
nearest. `importance` is the mean square of what a linear reads in each column: the diagonal of the second moments
that `gptq` beside this takes whole. Knows nothing of where they come from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.quantization.recipe import Storage
from export.quantization.rounding import TINY, Rounded

# Of the scale that rounding to nearest takes. Clipping pays down to about 0.6 in int4 groups of 32.
RATIOS = torch.linspace(0.6, 1.05, 19).tolist()
REFITS = 2  # least squares for the scale with levels fixed, then levels anew
PIECE = 1 << 17  # elements: temporaries of a piece fit the second-level cache, which is several times faster


def level_range(storage: Storage) -> tuple[int, int]:
    """The least and the greatest level."""
    return -(1 << storage.bits - 1), (1 << storage.bits - 1) - 1


def search_scales(rows: Tensor, storage: Storage, importance: Tensor) -> Tensor:
    """Scales [rows, groups] of storage.scale_dtype for float32 rows [rows, columns]; `importance` is [columns]."""
    weights = (importance / importance.mean().clamp(min=TINY)).view(1, storage.groups, -1)
    step = max(1, PIECE // storage.columns)
    pieces = rows.view(len(rows), storage.groups, -1).split(step)
    return torch.cat([_search(piece, storage, weights) for piece in pieces])


def _search(w: Tensor, storage: Storage, importance: Tensor) -> Tensor:
    low, high = level_range(storage)
    weighted = w * importance
    most, least = w.amax(-1), w.amin(-1)
    usual = torch.maximum(most, -least) / (high + 0.5)  # of rounding to nearest
    best = torch.full_like(usual, torch.inf)
    scales = usual

    def levels(scale: Tensor) -> Tensor:
        return (w / scale.unsqueeze(-1)).round_().clamp_(low, high)

    def attempt(scale: Tensor) -> None:
        nonlocal best, scales
        scale = scale.clamp(min=TINY).to(storage.scale_dtype).to(torch.float32)
        q = levels(scale)
        # The error without sum importance w^2, which is the same for all scales.
        error = scale * scale * (q * q * importance).sum(-1) - 2 * scale * (q * weighted).sum(-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, scale, scales)

    attempt(usual)
    attempt(torch.maximum(least / low, most / high))  # the least that clips nothing
    for ratio in RATIOS:
        attempt(usual * ratio)
    for _ in range(REFITS):
        q = levels(scales)
        fitted = (q * weighted).sum(-1) / (q * q * importance).sum(-1).clamp(min=TINY)
        attempt(torch.where(fitted > 0, fitted, scales))
    return scales.to(storage.scale_dtype)


def nearest(rows: Tensor, scales: Tensor, storage: Storage) -> Rounded:
    """Float32 rows [rows, columns] rounded to the nearest levels of these scales."""
    low, high = level_range(storage)
    grouped = rows.view(*scales.shape, -1)
    levels = (grouped / scales.to(torch.float32).unsqueeze(-1)).round_().clamp_(low, high).to(torch.int8)
    return Rounded(levels.view(rows.shape), scales, storage)
