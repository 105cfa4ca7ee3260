"""A folder that llm-compressor saved, as a `QuantizedSource`: its levels and scales as they are, or not at all.

compressed-tensors (0.19, format int-quantized) has int8 levels under a weight's own name and its scales beside it,
both as our files have them. The embedding, which llm-compressor leaves in float, is rounded to nearest, as every
calibration does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.roles import DTYPES, EMBEDDING, Role, role
from checkpoints.safetensors_io import Entry, read_header
from checkpoints.weights import Checkpoint
from export.quantization.recipe import Storage
from export.quantization.rounding import CHUNK_ELEMENTS, Quantizing, Rounded
from export.quantization.scales import level_range

SCALE = "_scale"  # after the name of a weight


class Compressed:
    """`quantizing` is of the checkpoint that was given to llm-compressor, in the recipe that was asked of it.

    Raises BadInput for a tensor that is not there, and for one of another shape or dtype.
    """

    def __init__(self, folder: Path, quantizing: Quantizing) -> None:
        self._quantizing = quantizing
        self.config, self.recipe = quantizing.config, quantizing.recipe
        self.notes, self.files = quantizing.notes, sorted(folder.glob("*.safetensors"))
        entries: dict[str, tuple[Entry, ...]] = {}
        for file in self.files:
            entries |= {name: (entry,) for name, entry in read_header(file)[0].items()}
        self._saved = Checkpoint(folder, self.config, self.files, entries)
        for name, shape in tensor_shapes(self.config).items():
            if role(name) is Role.NORM:
                self._check(name, shape, DTYPES)
            elif name != EMBEDDING:
                storage = self.recipe.storage(name, shape[1])
                self._check(name, shape, (torch.int8,))
                self._check(name + SCALE, (shape[0], storage.groups), DTYPES)

    def _check(self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
        saved = self._saved
        if name not in saved.names():
            raise BadInput(f"{saved.folder} has no tensor {name}")
        if saved.shape(name) != shape:
            raise BadInput(f"{saved.folder}: {name} has shape {saved.shape(name)}, {self.recipe} makes it {shape}")
        if saved.dtype(name) not in dtypes:
            raise BadInput(f"{saved.folder}: {name} is {saved.dtype(name)}, not {dtypes[0]}")

    def rows(self, name: str, start: int, stop: int) -> Iterator[Rounded | Tensor]:
        """Rows start … stop of a weight, in order; BadInput for values that our files cannot hold."""
        if name == EMBEDDING:
            yield from self._quantizing.rows(name, start, stop)
            return
        if role(name) is Role.NORM:
            yield self._saved.rows(name, start, stop).to(torch.float32)
            return
        storage = self.recipe.storage(name, self._saved.shape(name)[1])
        step = max(1, CHUNK_ELEMENTS // storage.columns)
        for at in range(start, stop, step):
            levels, scales = (self._saved.rows(key, at, min(at + step, stop)) for key in (name, name + SCALE))
            self._check_values(name, at, levels, scales, storage)
            yield Rounded(levels, scales.to(storage.scale_dtype), storage)
        self._saved.release(name)
        self._saved.release(name + SCALE)

    def _check_values(self, name: str, row: int, levels: Tensor, scales: Tensor, storage: Storage) -> None:
        (low, high), dtype = level_range(storage), storage.scale_dtype
        for what, bad in (
            (f"a level outside [{low}, {high}]", (levels < low) | (levels > high)),
            ("a scale that is not a positive number", ~torch.isfinite(scales) | (scales <= 0)),
            (f"a scale that is not a {dtype}", scales.to(dtype).to(scales.dtype) != scales),
        ):
            if bad.any():
                raise BadInput(f"{self._saved.folder}: {name} has {what} in row {row + int(bad.nonzero()[0, 0])}")
