"""The families whose tensors can be read, by `ModelConfig.family`: what each calls its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from checkpoints import phi3, phi4mm
from checkpoints.config import ModelConfig
from checkpoints.roles import Rows
from checkpoints.safetensors_io import Entry

Found = dict[str, tuple[Entry, ...]]


@dataclass(frozen=True)
class Tensors:
    """See the functions of `checkpoints.phi3`."""

    shapes: Callable[[ModelConfig], dict[str, tuple[int, ...]]]
    split: Callable[[ModelConfig], dict[str, Rows]]
    find: Callable[[Path, ModelConfig, Mapping[str, Entry]], Found]


FAMILIES = {
    "phi3": Tensors(phi3.tensor_shapes, phi3.split_names, phi3.model_tensors),
    "phi4mm": Tensors(phi4mm.tensor_shapes, phi3.split_names, phi4mm.model_tensors),
}


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, in model order; lm_head.weight only when untied."""
    return FAMILIES[config.family].shapes(config)


@lru_cache(maxsize=8)
def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The same as matrices and vectors, for an untied model; see `checkpoints.matrices`."""
    shapes = tensor_shapes(replace(config, tie_word_embeddings=False))
    return {name: phi4mm.matrix_shape(name, shape) for name, shape in shapes.items()}


def split_names(config: ModelConfig) -> dict[str, Rows]:
    """Names that other writers give to parts of a fused weight -> the rows that they are."""
    return FAMILIES[config.family].split(config)


def model_tensors(folder: Path, config: ModelConfig, entries: Mapping[str, Entry]) -> Found:
    """Name of every weight -> what its rows are stored in; BadInput unless all are those of `config`."""
    return FAMILIES[config.family].find(folder, config, entries)
