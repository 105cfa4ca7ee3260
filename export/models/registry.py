"""The families that can be exported, by `ModelConfig.family`.

What a family is on disk stands in `checkpoints.config` (architectures) and `checkpoints.families` (names of tensors).
"""

from __future__ import annotations

from checkpoints.config import ModelConfig
from checkpoints.families import matrix_shapes
from checkpoints.roles import Rows
from export.models.family import Family
from export.models.phi3.family import Phi3
from export.models.phi4mm.family import Phi4Multimodal

FAMILIES: dict[str, Family] = {"phi3": Phi3(), "phi4mm": Phi4Multimodal()}


def family_of(config: ModelConfig) -> Family:
    """The family of a model; `checkpoints.config` reads no others."""
    return FAMILIES[config.family]


def source_name(module: str) -> str | None:
    """The Hugging Face weight of which a file's module is, such as "layers.3.attention.wq"; None for a stranger."""
    return next((name for family in FAMILIES.values() if (name := family.source_name(module))), None)


def rows_shape(config: ModelConfig, rows: Rows) -> tuple[int, ...]:
    """Shape of some rows of a tensor, as a matrix or vector."""
    return (rows.stop - rows.start, *matrix_shapes(config)[rows.name][1:])
