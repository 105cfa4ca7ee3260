"""Adapters as PEFT saves them (LoRA), merged into a checkpoint's rows as these are read.

W + scale * alpha / r * B A, in float32, and whole weights where the adapter has trained them (`modules_to_save`).
Equal to peft's merge_and_unload of a float32 model, but for tied embeddings: there peft changes head and embedding
together, here each gets what was trained for it, as in the model that is not merged. Knows nothing of a checkpoint's
files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.config import ADAPTER, ModelConfig, read_object
from checkpoints.errors import BadInput, show
from checkpoints.families import split_names, tensor_shapes
from checkpoints.files import present
from checkpoints.lora_settings import WEIGHTS, refuse_others, scaling
from checkpoints.roles import DTYPES, EMBEDDING, Rows, usual_name
from checkpoints.safetensors_io import Entry, read_header, read_tensor
from checkpoints.source import Adapter

FACTOR = re.compile(r"(.+)\.lora_((?:embedding_)?[AB])(?:\.weight)?")
INNER = re.compile(r"\.(?:default|base_layer|modules_to_save)(?=\.|$)")  # what peft puts into names
# Rows multiplied at once. Always the same ones together, so that a row is the same whichever rows are asked for.
BLOCK = 64


@dataclass(frozen=True)
class LowRank:
    """`scale` times a product [rows, r] @ [r, columns], to be added to some rows of a weight."""

    rows: Rows
    left: Entry
    right: Entry
    scale: float
    transposed: bool  # both are stored so, as peft does for an embedding


Factors = Callable[[LowRank], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Changes:
    """What adapters make of a checkpoint, by the usual names of weights."""

    added: dict[str, tuple[LowRank, ...]]
    replaced: dict[str, Entry]

    def touch(self, name: str) -> bool:
        return name in self.added or name in self.replaced


def read_changes(adapters: tuple[Adapter, ...], config: ModelConfig) -> Changes:
    """Read what is to be merged into the model of `config`; BadInput for what cannot be, naming file and tensor."""
    added: dict[str, tuple[LowRank, ...]] = {}
    replaced: dict[str, Entry] = {}
    for adapter in adapters:
        for low in _read(adapter, config, replaced):
            added[low.rows.name] = (*added.get(low.rows.name, ()), low)
    return Changes(added, replaced)


def own_factors(adapter: str, scale: float, parts: Mapping[str, tuple[Entry, ...]]) -> dict[str, tuple[LowRank, ...]]:
    """What an adapter among a multimodal model's own weights adds to its text model; `scale` is its `Lora.scale`."""
    added: dict[str, tuple[LowRank, ...]] = {}
    for name, (left, *_) in parts.items():
        if name.endswith(ending := f".lora_B.{adapter}.weight"):
            module = name.removesuffix(ending)
            (right,) = parts[f"{module}.lora_A.{adapter}.weight"]
            rows = Rows(f"{module}.weight", 0, left.shape[0])
            added[rows.name] = (LowRank(rows, left, right, scale, transposed=False),)
    return added


def merge(rows: Tensor, start: int, added: Iterable[LowRank], factors: Factors) -> Tensor:
    """Rows from `start` on of a weight, [rows, columns] of any dtype, with all of `added`; float32.

    `factors` is `read_factors`, or a cache of it.
    """
    merged = rows.to(torch.float32, copy=True)
    for low in added:
        left, right = factors(low)
        first, last = max(start, low.rows.start), min(start + len(rows), low.rows.stop)
        for at in range((first - low.rows.start) // BLOCK * BLOCK, last - low.rows.start, BLOCK):
            product = (left[at : at + BLOCK] @ right).mul_(low.scale)
            begin = low.rows.start + at  # of the block, in the weight
            low_end, high_end = max(first, begin), min(last, begin + len(product))
            merged[low_end - start : high_end - start] += product[low_end - begin : high_end - begin]
    return merged


def read_factors(low: LowRank) -> tuple[Tensor, Tensor]:
    """float32 [rows, r] and [r, columns]."""
    left, right = (read_tensor(entry).to(torch.float32) for entry in (low.left, low.right))
    return (left.T.contiguous(), right.T.contiguous()) if low.transposed else (left, right)


def _read(adapter: Adapter, config: ModelConfig, replaced: dict[str, Entry]) -> list[LowRank]:
    path, file = adapter.folder / ADAPTER, adapter.folder / WEIGHTS
    if not present(path):
        raise BadInput(f"--adapter {adapter.folder} has no {ADAPTER}, as the folder of a PEFT adapter has")
    settings = read_object(path)
    refuse_others(path, settings)
    if not present(file):
        raise BadInput(f"--adapter {adapter.folder} has no {WEIGHTS}, and pickle files are never opened")
    split, shapes = split_names(config), tensor_shapes(dataclasses.replace(config, tie_word_embeddings=False))
    factors: dict[str, dict[str, Entry]] = {}
    for raw, entry in read_header(file)[0].items():
        name = INNER.sub("", usual_name(raw))
        if entry.dtype not in DTYPES:
            raise BadInput(f"{file}: {show(raw)} is {entry.dtype}, not bfloat16, float16 or float32")
        if (match := FACTOR.fullmatch(name)) and len(entry.shape) == 2:
            factors.setdefault(f"{match[1]}.weight", {})[match[2]] = entry
        elif shapes.get(name) == entry.shape and name not in replaced:
            replaced[name] = entry
        else:
            raise BadInput(f"{file}: {show(raw)} of shape {entry.shape} cannot be merged into {config.path}'s model")
    found = []
    for name, pair in factors.items():
        embedding = name == EMBEDDING
        sides = ("embedding_A", "embedding_B") if embedding else ("B", "A")  # left and right
        rows = split.get(name) or (Rows(name, 0, shapes[name][0]) if len(shapes.get(name, ())) == 2 else None)
        if rows is None or pair.keys() != set(sides):
            raise BadInput(f"{file}: lora_{min(pair)} of {show(name)} cannot be merged into {config.path}'s model")
        left, right = pair[sides[0]], pair[sides[1]]
        shape = (left.shape[::-1] if embedding else left.shape, right.shape[::-1] if embedding else right.shape)
        rank, wanted = shape[1][0], (rows.stop - rows.start, shapes[rows.name][1])
        if not rank or shape != ((wanted[0], rank), (rank, wanted[1])):
            raise BadInput(
                f"{file}: {name} of shape {wanted} cannot have lora_B @ lora_A of {left.shape} and {right.shape}"
            )
        found.append(
            LowRank(
                rows,
                left,
                right,
                adapter.scale * scaling(path, settings, name.removesuffix(".weight"), rank),
                embedding,
            )
        )
    return found
