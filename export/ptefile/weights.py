"""Reads a `.pte` back: what it says of itself, and its weights as float32 under their Hugging Face names.

The inverse of `export.models.phi3.layout`, with the recipe found from the sizes in the file. Knows nothing of
the runtime, and of the graph only its constant methods and the type of the KV cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import torch
from executorch.exir.schema import Bool, Int
from executorch.exir.schema import Tensor as TensorValue
from executorch.exir.tensor import enum_to_scalar_map
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.roles import EMBEDDING, HEAD, Role, role
from export.models.registry import family_of, rows_shape
from export.ptefile.reader import PteFile
from export.quantization.packing import unpack
from export.quantization.recipe import Recipe, Storage, short_name
from export.quantization.rounding import CHUNK_ELEMENTS


@dataclass(frozen=True)
class DecodedRows:
    """Some rows of a weight, from row `start` of the Hugging Face tensor on."""

    start: int
    values: Tensor  # float32 [rows, columns], or [columns] of a norm
    scale: Tensor | None  # float32 [rows, groups]; None for float32 weights
    bits: int


class FileWeights:
    """The weights in a `.pte` for the (untied) model of `config`.

    BadInput where the file lacks one, has layers the model lacks, or a size that no recipe explains. Memory: one
    piece; the file is read anew, its mapped pages are left alone.
    """

    def __init__(self, file: PteFile, config: ModelConfig) -> None:
        self.file = file
        self._layout = family_of(config).layout(config)
        for name in file.parts:
            if name.startswith("layers.") and f"{name.rpartition('.')[0]}.weight" not in self._layout:
                raise BadInput(f"{file.path} holds {name}, which the model of {config.path} does not have")
        shapes = {name: rows_shape(config, rows) for name, rows in self._layout.items()}
        self.storage = {name: self._storage(name, dims) for name, dims in shapes.items()}
        self._rows_of = {name: dims[0] if len(dims) == 2 else 1 for name, dims in shapes.items()}

    @property
    def rounds_activations(self) -> bool:
        """Whether linears quantize their input to int8, a scale a token: they do where weights are quantized."""
        return self.storage["output.weight"].bits != 32

    def recipe(self) -> Recipe:
        """The recipe that the sizes of all weights tell of; BadInput where rows of one weight differ in bits."""
        bits: dict[str, int] = {}
        for ours, rows in self._layout.items():
            if bits.setdefault(rows.name, self.storage[ours].bits) != self.storage[ours].bits:
                raise BadInput(
                    f"{self.file.path}: {ours} has {self.storage[ours].bits} bits, other rows of {rows.name} have "
                    f"{bits[rows.name]}, which no recipe makes"
                )
        if not self.rounds_activations:
            return Recipe(quantized=False)
        group = next((s.columns // s.groups for s in self.storage.values() if s.bits == 4), Recipe().group_size)
        int8 = tuple(short_name(name) for name, n in bits.items() if n == 8 and role(name) is Role.LINEAR)
        lora, encoder = (
            min((n for name, n in bits.items() if role(name) is kind), default=usual)
            for kind, usual in ((Role.ADAPTER, Recipe.lora_bits), (Role.ENCODER, Recipe.encoder_bits))
        )  # where groups do not divide their columns some have more
        return Recipe(True, group, bits[EMBEDDING], bits[HEAD], lora, encoder, int8)

    def names(self) -> list[str]:
        """Of all weights, in the checkpoint's words."""
        return list(dict.fromkeys(rows.name for rows in self._layout.values()))

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[DecodedRows]:
        """The rows start … stop (default: all) of the weight with this Hugging Face name, in order.

        About a processor's cache at a time.
        """
        with self.file.path.open("rb", buffering=0) as opened:
            for ours, rows in self._layout.items():
                if rows.name != name:
                    continue
                storage, count = self.storage[ours], self._rows_of[ours]
                step = max(1, CHUNK_ELEMENTS // storage.columns)
                first = max(0, start - rows.start)
                end = count if stop is None else min(count, stop - rows.start)
                for at in range(first, end, step):
                    values, scale = self._rows(opened, ours, at, min(at + step, end))
                    values = values.flatten() if count == 1 else values
                    yield DecodedRows(rows.start + at, values, scale, storage.bits)

    def embedding_rows(self, tokens: list[int]) -> Tensor:
        """Rows of the embedding, float32 [S, D]."""
        with self.file.path.open("rb", buffering=0) as opened:
            return torch.cat([self._rows(opened, "tok_embeddings.weight", at, at + 1)[0] for at in tokens])

    def prefetch(self, name: str) -> None:
        """Ask the system to read the weight's bytes in the background; without effect where it cannot."""
        if not hasattr(os, "posix_fadvise"):  # macOS and Windows
            return
        with self.file.path.open("rb", buffering=0) as opened:
            for ours, rows in self._layout.items():
                if rows.name == name:
                    offset, size = self.file.parts[ours]
                    os.posix_fadvise(opened.fileno(), offset, size, os.POSIX_FADV_WILLNEED)

    def _rows(self, opened: BinaryIO, ours: str, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        storage, stem = self.storage[ours], ours.removesuffix(".weight")
        kind = {32: torch.float32, 8: torch.int8, 4: torch.uint8}[storage.bits]
        row_bytes = storage.columns * storage.bits // 8
        weight = self._read(opened, f"{stem}.weight", row_bytes, start, stop).view(kind)
        if storage.bits == 32:
            return weight, None
        row_bytes = storage.groups * storage.scale_dtype.itemsize
        scale = self._read(opened, f"{stem}.scale", row_bytes, start, stop).view(storage.scale_dtype)
        scale = scale.to(torch.float32)
        return unpack(weight, scale, storage), scale

    def _read(self, opened: BinaryIO, data_name: str, row_bytes: int, start: int, stop: int) -> Tensor:
        """uint8 [stop - start, row_bytes]"""
        offset, _ = self.file.parts[data_name]
        data = bytearray(os.pread(opened.fileno(), (stop - start) * row_bytes, offset + start * row_bytes))
        return torch.frombuffer(data, dtype=torch.uint8).view(stop - start, row_bytes)

    def _storage(self, name: str, dims: tuple[int, ...]) -> Storage:
        rows, columns = dims if len(dims) == 2 else (1, dims[0])
        embedding, scale_name = name.startswith("tok_"), name.removesuffix("weight") + "scale"
        weight_bytes = len(self.file.data(name))
        bits, rest = divmod(8 * weight_bytes, rows * columns)
        scale_bytes = len(self.file.data(scale_name)) if scale_name in self.file.parts else 0
        scale_dtype = torch.bfloat16 if bits == 4 and not embedding else torch.float32
        groups, scale_rest = divmod(scale_bytes, rows * scale_dtype.itemsize)
        known = (bits == 32 and groups == 0) or (bits in (4, 8) and groups > 0 and columns % groups == 0)
        if rest or scale_rest or not known:
            raise BadInput(
                f"{self.file.path}: {name} takes {weight_bytes} bytes and {scale_bytes} of scales, which no recipe "
                f"explains for {rows} x {columns} elements"
            )
        return Storage(columns, bits, groups, scale_dtype, embedding)


def constant(file: PteFile, name: str) -> int:
    """The integer or boolean a constant method of the file returns, such as get_max_seq_len (tokens)."""
    for plan in file.program.execution_plan:
        if plan.name == name and len(plan.outputs) == 1:
            value = plan.values[plan.outputs[0]].val
            if isinstance(value, Int):
                return value.int_val
            if isinstance(value, Bool):
                return int(value.bool_val)
    raise BadInput(f"{file.path} has no method {name} that returns a number, as the runners of language models need")


def cache_dtype(file: PteFile, config: ModelConfig, context: int) -> torch.dtype:
    """Type of the KV cache: that of the tensors [KV heads, context, 1, head size] of `forward`.

    Upstream's files, and ours of before, have [1, context, KV heads, head size].
    """
    heads, size = config.num_key_value_heads, config.head_dim
    wanted = [heads, context, 1, size], [1, context, heads, size]
    forward = next(plan for plan in file.program.execution_plan if plan.name == "forward")
    for value in forward.values:
        if isinstance(value.val, TensorValue) and list(value.val.sizes) in wanted:
            return enum_to_scalar_map[value.val.scalar_type]
    raise BadInput(f"{file.path} has no KV cache of shape {wanted[0]}, as {config.path} makes it")


def run_bytes(file: PteFile) -> int:
    """About what running a file takes: its weights once more, as XNNPACK packs them, and the planned memory."""
    forward = next(plan for plan in file.program.execution_plan if plan.name == "forward")
    return file.size + sum(int(size) for size in forward.non_const_buffer_sizes)


def logits_positions(file: PteFile) -> int:
    """Of how many last tokens of a call `forward` returns logits: [1, V] of the last alone, or [1, that many, V]."""
    forward = next(plan for plan in file.program.execution_plan if plan.name == "forward")
    output = forward.values[forward.outputs[0]].val
    return prod(output.sizes[:-1]) if isinstance(output, TensorValue) else 1
