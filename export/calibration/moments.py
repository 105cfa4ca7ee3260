"""What the calibration tokens are within a layer, and the second moments of what a linear reads.

Work is cut in the same pieces whatever the machine: a sequence for a forward pass, a block of columns for a sum over
all sequences. So on one kind of processor the same tokens give the same bits with any number of threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.files import reserve

SPILL = 1 << 30  # bytes; activations of all sequences that take more are mapped to a file
BLOCK = 256  # columns of the moments that are summed at once


def activations(shape: tuple[int, ...], folder: Path, device: str) -> Tensor:
    """Room for float32 activations; large ones are a nameless file's pages, which leave memory when it is short."""
    size = torch.Size(shape).numel()
    if device != "cpu" or 4 * size <= SPILL:
        return torch.empty(shape, device=device)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        reserve(Path(file.name), 4 * size)  # writing to a mapped page that the disk has no room for ends the process
        return torch.from_file(file.name, shared=True, size=size).view(shape)


def each(pool: Executor, count: int, work: Callable[[int], object]) -> None:
    """Call `work` for every sequence; the first exception is raised here."""
    for done in [pool.submit(work, n) for n in range(count)]:
        done.result()


def mean_squares(x: Tensor, pool: Executor) -> Tensor:
    """Of each column of x [N, S, columns]: float32 [columns], summed in float64."""
    sums = list(pool.map(lambda n: x[n].double().square_().sum(0), range(len(x))))
    return (torch.stack(sums).sum(0) / (x.shape[0] * x.shape[1])).to(torch.float32)


def moments(x: Tensor, pool: Executor) -> Tensor:
    """Mean of x x^T over all tokens of x [N, S, columns]: float32 [columns, columns]."""
    columns = x.shape[-1]
    found = torch.zeros(columns, columns, device=x.device)

    def add(start: int) -> None:
        stop = min(start + BLOCK, columns)
        for sequence in x:  # always in this order
            found[start:stop, start:].addmm_(sequence[:, start:stop].T, sequence[:, start:])
        found[start:stop, start:] /= x.shape[0] * x.shape[1]

    def mirror(start: int) -> None:
        stop = min(start + BLOCK, columns)
        found[stop:, start:stop] = found[start:stop, stop:].T

    starts = range(0, columns, BLOCK)
    for work in (add, mirror):
        for done in [pool.submit(work, start) for start in starts]:
            done.result()
    return found
