"""Writes every weight of a model into its place in a file that is being made, a few rows at a time.

Runs in a process of its own beside the graph: both are long, and a second thread would wait for the interpreter.
Memory: one piece of `export.quantization.rounding.CHUNK_ELEMENTS` with its temporaries; the checkpoint's mapped pages
are let go tensor by tensor.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.config import ModelConfig
from checkpoints.files import write_at
from checkpoints.phi3 import Role, role
from export import progress
from export.models.layout import Rows, layout, shape
from export.quantization.packing import packed_parts, packed_sizes
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantized

ALIGNMENT = 128  # bytes; ExecuTorch's segment alignment, twice what XNNPACK asks of its constants


@dataclass(frozen=True)
class Placed:
    """One ExecuTorch tensor: the rows it is made of and the byte offset of each of its parts."""

    name: str  # "layers.0.attention.wq", without ".weight"
    rows: Rows
    offsets: dict[str, int]  # suffix -> offset from the start of the region
    sizes: dict[str, int]  # suffix -> bytes

    def data(self) -> dict[str, tuple[int, int]]:
        """Data name -> (offset, size)."""
        return {f"{self.name}.{suffix}": (self.offsets[suffix], self.sizes[suffix]) for suffix in self.sizes}


def place(config: ModelConfig, recipe: Recipe) -> list[Placed]:
    """Lay out all weights one after another: those of delegates first, then embedding and norms (the constants)."""
    placed, at = [], 0
    tensors = layout(config).items()
    # stable: the order of the graph within each
    for name, rows in sorted(tensors, key=lambda item: role(item[1].name) not in (Role.LINEAR, Role.HEAD)):
        sizes = packed_sizes(shape(config, name), role(rows.name), recipe)
        offsets = {}
        for suffix, size in sizes.items():
            at += -at % ALIGNMENT
            offsets[suffix] = at
            at += size
        placed.append(Placed(name.removesuffix(".weight"), rows, offsets, sizes))
    return placed


def end(placed: list[Placed]) -> int:
    """First byte after the last part."""
    return max(offset + size for item in placed for offset, size in item.data().values())


def write_weights(
    path: Path, base: int, source: Quantized, placed: list[Placed], count: Callable[[int], None]
) -> None:
    """Write all parts at `base` + their offsets into an existing file; `count` gets the bytes of each piece."""
    with open(path, "r+b", buffering=0) as file:
        for item in placed:
            at = dict(item.offsets)
            for rows in source.rows(item.rows.name, item.rows.start, item.rows.stop):
                for part in packed_parts(rows):
                    view = part.bytes()
                    write_at(file.fileno(), view, base + at[part.suffix])
                    at[part.suffix] += len(view)
                    count(len(view))
            written = {suffix: at[suffix] - item.offsets[suffix] for suffix in at}
            if written != item.sizes:
                raise RuntimeError(f"{item.name}: wrote {written} bytes, planned {item.sizes}")


class Beside:
    """`write_weights` in another process: `written` bytes so far, `join` to wait and get its errors."""

    def __init__(self, path: Path, base: int, source: Callable[[], Quantized], placed: list[Placed]) -> None:
        context = multiprocessing.get_context("spawn")
        self._written = context.Value("q", 0)
        self._pool = ProcessPoolExecutor(1, context, progress.begin_child, (self._written,))
        began = time.monotonic()
        self.seconds = 0.0  # from start to end, known once done
        self._future: Future[None] = self._pool.submit(_work, path, base, source, placed)
        self._future.add_done_callback(lambda _: setattr(self, "seconds", time.monotonic() - began))

    @property
    def written(self) -> int:
        return self._written.value

    def join(self) -> None:
        self._future.result()
        self._pool.shutdown()

    def stop(self) -> None:
        """Give up at once; the file is left as it is."""
        for process in (self._pool._processes or {}).values():
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _work(path: Path, base: int, source: Callable[[], Quantized], placed: list[Placed]) -> None:
    # The pieces are small enough to stay in the cache of one core; the other core has the graph.
    torch.set_num_threads(1)
    parent = os.getppid()

    def count(size: int) -> None:
        if os.getppid() != parent:  # killed without a chance to stop us
            os._exit(1)
        progress.written.value += size

    write_weights(path, base, source(), placed, count)
