"""Where every weight of a model lies in a `.pte`, known before any of them is read.

Offsets count from the start of the region of weights, which begins `program_room` bytes into the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from checkpoints.config import ModelConfig
from checkpoints.roles import Role, Rows, role
from export.models.registry import family_of, rows_shape
from export.quantization.recipe import Recipe

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
        sizes = recipe.storage(rows.name, columns).nbytes(count)
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
