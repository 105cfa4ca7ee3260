"""The families that can be exported, by `ModelConfig.family`.

What a family is on disk stands in `checkpoints.config` (architectures) and `checkpoints.families` (names of tensors).
"""

from __future__ import annotations

import dataclasses

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.roles import Rows
from export.models.family import Family
from export.models.phi3.family import Phi3

FAMILIES: dict[str, Family] = {"phi3": Phi3()}


def family_of(config: ModelConfig) -> Family:
    """The family of a model; BadInput for one whose files can be read and no more."""
    if config.family not in FAMILIES:
        raise BadInput(f"{config.path}: model_type {config.raw['model_type']} can be read, but not exported")
    return FAMILIES[config.family]


def rows_shape(config: ModelConfig, rows: Rows) -> tuple[int, ...]:
    """Shape of some rows of a tensor."""
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    return (rows.stop - rows.start, *tensor_shapes(untied)[rows.name][1:])
