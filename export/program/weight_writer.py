"""Writes every weight of a model into its place in a file that is being made, a few rows at a time.

In processes of their own beside the graph: both are long, and threads would wait for the interpreter. Memory: one
piece of `export.quantization.rounding.CHUNK_ELEMENTS` a process with its temporaries; the checkpoint's mapped pages
are let go tensor by tensor. Imports torch and nothing of executorch: the processes are at work while the graph's are
imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch

from checkpoints.config import ModelConfig
from checkpoints.files import tensor_bytes, write_at
from checkpoints.roles import Role, Rows, role
from checkpoints.source import Source
from export.models.registry import family_of, rows_shape
from export.quantization.packing import pack
from export.quantization.recipe import Recipe
from export.quantization.rounding import QuantizedSource
from export.quantization.saved_reader import open_quantized
from export.subprocess_call import Job, tell

# For the processes: glibc would give the temporaries of each piece back to the system and take them anew, page by
# page, which costs a third on top.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
CONSTANTS = (Role.EMBEDDING, Role.NORM, Role.TABLE)  # what the graph itself holds
ALIGNMENT = 128  # bytes; ExecuTorch's segment alignment, twice what XNNPACK asks of its constants


@dataclass(frozen=True)
class Placed:
    """One ExecuTorch tensor: the rows it is made of and the byte offset of each of its parts."""

    name: str  # "layers.0.attention.wq", without ".weight"
    rows: Rows
    offsets: dict[str, int]  # part, "weight" or "scale" -> offset from the start of the region
    sizes: dict[str, int]  # part -> bytes

    @property
    def data(self) -> dict[str, tuple[int, int]]:
        """Name of a part, "layers.0.attention.wq.scale" -> (offset, size)."""
        return {f"{self.name}.{part}": (self.offsets[part], size) for part, size in self.sizes.items()}


def program_room(config: ModelConfig) -> int:
    """Bytes kept for the program in front of the weights: 2.5 times what a program of 32 layers takes, and more of
    a smaller one."""
    layers = config.num_hidden_layers
    if (media := config.multimodal) is not None:  # so many methods have them
        layers *= 3 + len(media.loras)
        layers += 2 * media.vision.used_layers if media.vision else 0
        layers += 3 * media.audio.num_hidden_layers if media.audio else 0
    return 128 * 1024 + layers * 16 * 1024


def place(config: ModelConfig, recipe: Recipe) -> list[Placed]:
    """Lay out all weights one after another: those of delegates first, then CONSTANTS."""
    placed, at = [], 0
    tensors = family_of(config).layout(config).items()
    # stable: the order of the graph within each
    for name, rows in sorted(tensors, key=lambda item: role(item[1].name) in CONSTANTS):
        dims = rows_shape(config, rows)
        count, columns = dims if len(dims) == 2 else (1, dims[0])
        sizes = recipe.storage(role(rows.name), columns).nbytes(count)
        offsets = {}
        for part, size in sizes.items():
            at += -at % ALIGNMENT
            offsets[part] = at
            at += size
        placed.append(Placed(name.removesuffix(".weight"), rows, offsets, sizes))
    return placed


def end(placed: Sequence[Placed]) -> int:
    """First byte after the last part."""
    return max(offset + size for item in placed for offset, size in item.data.values())


def write_weight(path: Path, base: int, source: Source, recipe: Recipe, item: Placed) -> str:
    """Write all parts of one weight at `base` + their offsets into an existing file; the digest of their bytes.

    The bytes of each piece are told to a parent process.
    """
    opened, at = _open(source, recipe), dict(item.offsets)
    digests = {part: hashlib.sha256() for part in item.sizes}
    with open(path, "r+b", buffering=0) as file:
        for rows in opened.rows(item.rows.name, item.rows.start, item.rows.stop):
            written = 0
            for part, data in pack(rows).items():
                view = tensor_bytes(data)
                digests[part].update(view)
                at[part] = write_at(file.fileno(), view, base + at[part]) - base
                written += len(view)
            tell(written)
    sizes = {part: at[part] - item.offsets[part] for part in at}
    if sizes != item.sizes:
        raise RuntimeError(f"{item.name}: wrote {sizes} bytes, planned {item.sizes}")
    form = repr((item.rows.stop - item.rows.start, sizes)).encode()
    return hashlib.sha256(form + b"".join(digest.digest() for digest in digests.values())).hexdigest()


def weight_jobs(
    path: Path, base: int, source: Source, recipe: Recipe, placed: Sequence[Placed]
) -> Iterator[tuple[str, Job]]:
    """`write_weight` for each weight, by name; the largest come first, so that the last ones end together."""
    for item in sorted(placed, key=lambda item: -sum(item.sizes.values())):
        yield item.name, partial(write_weight, path, base, source, recipe, item)


@lru_cache(maxsize=1)
def _open(source: Source, recipe: Recipe) -> QuantizedSource:
    torch.set_num_threads(1)  # pieces are small enough to stay in the cache of one core
    return open_quantized(source, recipe)
