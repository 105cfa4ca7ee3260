"""Writes a quantized checkpoint as transformers 5.23 and torchao 0.18 save one, without ever holding a weight whole.

The folder loads with AutoModelForCausalLM.from_pretrained. Names and metadata come from torchao's own flattening of
one row of each weight; sizes are known before, so every piece goes straight to its place in the file.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torchao.core.config import config_to_dict
from torchao.quantization import FqnToConfig

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.files import Progress, copy_rest, tensor_bytes, whole_folder, write_at, write_json
from checkpoints.roles import EMBEDDING, HEAD, Role
from checkpoints.safetensors_io import make_header
from checkpoints.weights import INDEX, SINGLE
from export.quantization.recipe import Recipe
from export.quantization.rounding import QuantizedSource, Rounded

MAX_SHARD = 5_000_000_000  # bytes
BLOCK_ELEMENTS = 1 << 26  # read between two releases of a mapped weight
LINEARS = r"re:model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
# The order of parameters in transformers' modeling_phi3, which that of tensor_names follows.
LAYER = ("o_proj", "qkv_proj", "gate_up_proj", "down_proj", "input_layernorm", "post_attention_layernorm")
OLD_KEYS = {"torch_dtype", "rope_scaling", "rope_theta", "partial_rotary_factor"}  # spelled anew


@dataclass(frozen=True)
class Weight:
    """One weight and the tensors it is stored as."""

    name: str
    rows: int
    parts: dict[str, Tensor]  # name in the file -> meta tensor of its shape and dtype
    metadata: str

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.parts.values())


def save_quantized(
    source: QuantizedSource,
    folder: Path,
    progress: Progress = lambda size: None,
    beside: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> None:
    """Write `folder`, which must not exist or be empty, whole or not at all; `progress` gets each piece's bytes.

    Tokenizer, generation_config.json and licence are copied from the folder `source` was read from, and `beside` are
    JSON files that go with them. Raises BadInput for an unquantized source, a taken name and too small a disk.
    """
    if not source.recipe.quantized:
        raise BadInput(f"{folder}: a checkpoint in {source.recipe} is not a quantized one")
    weights = plan(source)
    metadata = {weight.name: weight.metadata for weight in weights}
    metadata |= {"tensor_names": json.dumps(list(metadata)), "format": "pt"}
    shards = _shards(weights)
    with whole_folder(folder, nbytes(weights)) as aside, _one_thread():
        copy_rest(source.config.path.parent, aside)
        for name, value in ({**beside} | {"config.json": model_config(source.config, source.recipe)}).items():
            write_json(aside / name, value)
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards, start=1):
            name = SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
            _write_shard(aside / name, source, shard, metadata, progress)
            weight_map |= {key: name for weight in shard for key in weight.parts}
        if len(shards) > 1:
            write_json(aside / INDEX, {"metadata": {"total_size": nbytes(weights)}, "weight_map": weight_map})


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pieces fit the cache of one core; a second thread made them seven times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def plan(source: QuantizedSource) -> list[Weight]:
    """All weights with their tensors in the file, in the order of transformers' state dict.

    Raises BadInput for a model that is not of text alone.
    """
    if source.config.multimodal is not None:
        raise BadInput(f"{source.config.path}: only text models can be saved quantized")
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    weights = []
    for name, shape in sorted(tensor_shapes(source.config).items(), key=lambda item: _order(item[0])):
        (row,) = source.rows(name, 0, 1)
        parts, metadata = flatten_tensor_state_dict({name: _as_torchao(row)})
        whole = {
            key: torch.empty(shape[0], *tensor.shape[1:], dtype=tensor.dtype, device="meta")
            for key, tensor in parts.items()
        }
        weights.append(Weight(name, shape[0], whole, metadata[name]))
    return weights


def nbytes(weights: list[Weight]) -> int:
    """Bytes of all tensors, without headers."""
    return sum(weight.nbytes for weight in weights)


def _order(name: str) -> tuple[int, int, int]:
    if name == HEAD:
        return 3, 0, 0
    fields = name.split(".")
    if fields[1] != "layers":
        return (0 if name == EMBEDDING else 2), 0, 0
    return 1, int(fields[2]), LAYER.index(fields[-2])


def _shards(weights: list[Weight]) -> list[list[Weight]]:
    """Cut into files of at most MAX_SHARD bytes, in order; the tensors of a weight stay together."""
    shards: list[list[Weight]] = [[]]
    for weight in weights:
        if shards[-1] and nbytes(shards[-1]) + weight.nbytes > MAX_SHARD:
            shards.append([])
        shards[-1].append(weight)
    return shards


def _write_shard(
    path: Path, source: QuantizedSource, shard: list[Weight], metadata: dict[str, str], progress: Progress
) -> None:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    parts = [(key, tensor) for weight in shard for key, tensor in weight.parts.items()]
    parts.sort(key=lambda item: -item[1].element_size())  # keeps every tensor aligned
    header, places = make_header(dict(parts), metadata)
    ends = {key: places[key] + tensor.nbytes for key, tensor in parts}
    with path.open("wb", buffering=0) as file:
        file.write(header)
        for weight in shard:
            for rows in _rows(source, weight):
                for key, tensor in flatten_tensor_state_dict({weight.name: _as_torchao(rows)})[0].items():
                    piece = tensor_bytes(tensor)
                    places[key] = write_at(file.fileno(), piece, places[key])
                    progress(len(piece))
    if places != ends:
        raise RuntimeError(f"{path}: tensors end at {places}, planned {ends}")


def _as_torchao(rows: Rounded | Tensor) -> Tensor:
    return rows.as_torchao() if isinstance(rows, Rounded) else rows


def _rows(source: QuantizedSource, weight: Weight) -> Iterator[Rounded | Tensor]:
    """All rows of a weight, asked for in blocks: `source` lets go of the file's pages after each."""
    columns = max(math.prod(tensor.shape[1:]) for tensor in weight.parts.values())
    step = max(1, BLOCK_ELEMENTS // columns)
    for start in range(0, weight.rows, step):
        yield from source.rows(weight.name, start, min(start + step, weight.rows))


def fqn_config(recipe: Recipe) -> FqnToConfig:
    """The recipe as torchao spells it for a whole model of transformers."""
    table = {
        EMBEDDING.removesuffix(".weight"): recipe.torchao_config(Role.EMBEDDING),
        HEAD.removesuffix(".weight"): recipe.torchao_config(Role.HEAD),
        LINEARS: recipe.torchao_config(Role.LINEAR),
    }
    return FqnToConfig(OrderedDict(table))


def model_config(config: ModelConfig, recipe: Recipe) -> dict[str, Any]:
    """config.json of the untied, quantized model; dtype is that of norms and activations."""
    quantization = {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(fqn_config(recipe))},
        "modules_to_not_convert": [],  # without it transformers takes lm_head for one of them
        "include_input_output_embeddings": True,
        "untie_embedding_weights": False,
    }
    raw = {key: value for key, value in config.raw.items() if key not in OLD_KEYS}
    return (
        raw
        | config.as_phi3()
        | {"dtype": "float32", "tie_word_embeddings": False, "quantization_config": quantization}
    )
