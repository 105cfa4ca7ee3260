"""AWQ's channel scales (arXiv:2306.00978), folded into the weights: another spelling of the same model.

Columns of a linear whose inputs are large get a factor above one before they are rounded, and what makes these inputs
(a norm, or rows of the linear before) is divided by it. In exact arithmetic nothing changes but what rounding does.
A factor is a power of the mean magnitude of its input; the power is the one whose rounded weights, on int8 inputs,
give results nearest to the float ones on some calibration tokens. Folded in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from export.models.family import Site
from export.quantization.recipe import Storage
from export.quantization.rounding import round_rows
from export.reference.layerwise import round_activations

POWERS = tuple(power / 10 for power in range(9))
TOKENS = 512  # on which a power is chosen
ROWS = 512
LEAST = 1e-4  # of the mean magnitude: columns that are never used have no factor of their own

Read = Callable[[int, int], Tensor]  # rows start … stop, float32 [rows, columns]


@dataclass
class Seen:
    """What a linear reads, unrounded: mean magnitudes float64 [columns], and some tokens float32 [T, columns]."""

    magnitude: Tensor
    sample: Tensor


def see(x: Tensor, tokens: int) -> Seen:
    """Of one sequence x [S, columns], with about so many of its tokens, evenly spaced."""
    return Seen(x.double().abs_().mean(0), x[:: max(1, len(x) // max(1, tokens))].clone())


def together(seen: list[Seen]) -> Seen:
    """Of several sequences of one length."""
    return Seen(torch.stack([s.magnitude for s in seen]).mean(0), torch.cat([s.sample for s in seen]))


def choose_factors(read: Read, rows: int, storage: Storage, seen: Seen, fed: Tensor, pool: Executor) -> Tensor:
    """float64 [feeding rows]: what to multiply the columns fed by each by; see `export.models.family.Site`."""
    feeders = int(fed.max()) + 1
    total = torch.zeros(feeders, dtype=torch.float64, device=fed.device).index_add_(0, fed, seen.magnitude)
    magnitude = total / torch.bincount(fed, minlength=feeders)
    magnitude = (magnitude / magnitude.mean().clamp(min=1e-30)).clamp(min=LEAST)
    tried = [magnitude**power for power in POWERS]
    tried = [factors / (factors.max() * factors.min()).sqrt() for factors in tried]
    inputs = [round_activations((seen.sample / factors[fed]).to(torch.float32)) for factors in tried]

    def errors(start: int) -> Tensor:
        weight = read(start, min(start + ROWS, rows))
        right = seen.sample @ weight.T
        found = []
        for factors, x in zip(tried, inputs, strict=True):
            rounded = round_rows(fold_columns(weight, factors[fed]), storage).dequantize()
            found.append((x @ rounded.T - right).square_().double().sum())
        return torch.stack(found)

    error = torch.stack(list(pool.map(errors, range(0, rows, ROWS)))).sum(0)
    return tried[int(error.argmin())]


def move(weights: Mapping[str, Tensor], site: Site, factors: Tensor) -> None:
    """Multiply the columns of a site's linear by float64 factors and divide what feeds them, in place."""
    linear = weights[site.linear]
    linear.copy_(fold_columns(linear, factors[site.fed.to(factors.device)]))
    feeder = weights[site.feeder.name][site.feeder.start : site.feeder.stop]
    feeder.copy_(unfold_rows(feeder, factors))


def fold_columns(weight: Tensor, factors: Tensor) -> Tensor:
    """Rows [rows, columns] with columns multiplied, float64 [columns]."""
    return (weight * factors).to(torch.float32)


def unfold_rows(weight: Tensor, factors: Tensor) -> Tensor:
    """Rows [rows, columns], or elements of a norm, divided by factors float64 [rows]."""
    return (weight / factors.view(-1, *[1] * (weight.dim() - 1))).to(torch.float32)
