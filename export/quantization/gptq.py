"""GPTQ (arXiv:2210.17323): levels that keep what a linear computes, not what its weights are.

Columns are rounded one after another, and the error of each is spread over those to come, so that the sum over the
calibration tokens of ||W x - Q x||^2 grows least. Columns come in order of their importance ("act-order") on scales
that are chosen before ("static groups"), so a file holds nothing but other levels. Rows are independent. Does not
know where the second moments of the inputs, the mean of x x^T, come from.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from export.quantization.recipe import Storage
from export.quantization.rounding import Rounded
from export.quantization.scales import level_range

DAMPING = 0.01  # of the mean diagonal, added to it: the paper's
BLOCK = 64  # columns between two updates of all that follow
INVERSE_BLOCK = 256  # columns of the inverse solved for at once


@dataclass(frozen=True)
class Factor:
    """What rounding needs of the second moments H [columns, columns]."""

    order: Tensor  # int64 [columns], the most important first
    upper: Tensor  # float32, upper triangular U with U^T U = (damped H in that order)^-1


def factorize(moments: Tensor, pool: Executor) -> Factor:
    """The Factor of H, float32 [columns, columns], which is damped in place; memory: four more of its size.

    U is the inverse of the upper V with H = V V^T, which is a Cholesky factor of H with rows and columns reversed:
    half of the arithmetic of inverting H first, and no inverse is rounded before it is factorized.
    """
    diagonal = moments.diagonal()
    diagonal[diagonal <= 0] = 1  # a column that was never other than zero
    order = diagonal.argsort(descending=True, stable=True)
    damping = DAMPING * diagonal.mean()
    back = order.flip(0)
    while True:
        diagonal += damping
        lower, failed = torch.linalg.cholesky_ex(moments[back][:, back])
        if not failed:
            break
        damping = damping * 10  # rounding of sums can leave H with a negative eigenvalue
    v = lower.flip(0, 1)
    del lower
    upper = torch.zeros_like(v)

    def solve(start: int) -> None:
        stop = min(start + INVERSE_BLOCK, len(v))
        unit = torch.zeros(stop, stop - start, dtype=v.dtype, device=v.device)
        unit[start:] = torch.eye(stop - start, device=v.device)
        upper[:stop, start:stop] = torch.linalg.solve_triangular(v[:stop, :stop], unit, upper=True)

    for done in [pool.submit(solve, start) for start in range(0, len(v), INVERSE_BLOCK)]:
        done.result()
    return Factor(order, upper)


def gptq(rows: Tensor, scales: Tensor, storage: Storage, factor: Factor) -> Rounded:
    """Float32 rows [rows, columns] on these scales [rows, groups]."""
    low, high = level_range(storage)
    order, upper = factor.order, factor.upper
    group = (order // (storage.columns // storage.groups)).tolist()
    by_group = scales.to(torch.float32).T.contiguous()
    w = rows.T[order].contiguous()  # a column is contiguous
    levels = torch.empty_like(w)
    for start in range(0, len(w), BLOCK):
        stop = min(start + BLOCK, len(w))
        block, near, errors = w[start:stop], upper[start:stop, start:stop], torch.empty_like(w[start:stop])
        for i in range(stop - start):
            scale = by_group[group[start + i]]
            level = torch.div(block[i], scale, out=levels[start + i]).round_().clamp_(low, high)
            error = torch.addcmul(block[i], level, scale, value=-1, out=errors[i]).div_(near[i, i])
            if i + 1 < stop - start:
                block[i + 1 :].addr_(near[i, i + 1 :], error, alpha=-1)
        if stop < len(w):
            w[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    found = torch.empty_like(rows, dtype=torch.int8)
    found[:, order] = levels.T.to(torch.int8)
    return Rounded(found, scales, storage)
