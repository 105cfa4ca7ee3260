"""One GGUF file: reads and checks its header, and decodes rows of its tensors.

The layout is that of ggml's specification (docs/gguf.md): magic, version, metadata, descriptions of tensors, aligned
data. Header and metadata are read here, so that a damaged file is a sentence; quantized types are decoded by the
package `gguf` of ggml's makers, an optional dependency. Knows nothing of models.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.errors import BadInput, show
from checkpoints.files import check_fetched
from checkpoints.safetensors_io import Entry

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 has other lengths; big-endian files read as a version above 2 ** 24
FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # ggml's number of a type -> what it is in torch
NUMBERS = dict(enumerate(["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"])) | {10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9  # the types of metadata that are not numbers
MAX_DIMS = 4
ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class Blocks(Entry):
    """Rows of a GGUF file that are decoded when read; shape and dtype are those of the decoded tensor."""

    ggml_type: int | None  # of the blocks; None: the bytes are numbers of `dtype`
    heads: int = 0  # whose two halves of rows llama.cpp has interleaved; 0: rows are in order

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of the bytes: rows of whole blocks."""
        return (self.shape[0], (self.end - self.begin) // self.shape[0]), torch.uint8

    def rows(self, stored: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop of the tensor whose bytes are `stored`."""
        found = stored[self._order(start, stop)] if self.heads else stored[start:stop]
        if self.ggml_type is None:
            return found.contiguous().view(self.dtype)
        from gguf import GGMLQuantizationType, dequantize

        return torch.from_numpy(dequantize(found.numpy(), GGMLQuantizationType(self.ggml_type)))

    def _order(self, start: int, stop: int) -> torch.Tensor:
        """Where the file has rows start … stop: those of both halves of a head take turns there."""
        row, size = torch.arange(start, stop), self.shape[0] // self.heads
        head, within = row // size, row % size
        return head * size + within % (size // 2) * 2 + within // (size // 2)


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Metadata (numbers, strings and lists of them) and tensors, in the order of their data.

    Floats are plain entries, quantized types `Blocks`. BadInput for a file that is damaged, of another version, or
    has a type of tensor that `gguf` does not know.
    """
    try:
        with file.open("rb") as handle:
            start = handle.read(64)
            check_fetched(file, start)
            if start[:4] != MAGIC:
                raise BadInput(f"{file} is not a GGUF file: it begins with {start[:4]!r}")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as pages:
                header = _Header(file, pages)
                return header.metadata, header.tensors
    except OSError as problem:
        raise BadInput(f"{file} cannot be read: {problem.strerror}") from None


class _Header:
    def __init__(self, file: Path, pages: mmap.mmap) -> None:
        self.file, self.pages, self.at = file, pages, len(MAGIC)
        (version,) = self._unpack("<I")
        if version not in VERSIONS:
            raise BadInput(f"{file} is of GGUF version {version}, only {VERSIONS[0]} and {VERSIONS[1]} can be read")
        tensors, pairs = self._unpack("<QQ")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            if key in self.metadata:
                raise BadInput(f"{file} has {show(key)} twice")
            self.metadata[key] = self._value(*self._unpack("<I"))
        described = [(self._string(), *self._description()) for _ in range(tensors)]
        alignment = self.metadata.get(ALIGNMENT, 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 16:
            raise BadInput(f"{file}: {ALIGNMENT} is {show(alignment)}, not a number of bytes")
        self.tensors = _placed(file, described, self.at + -self.at % alignment, len(pages))

    def _description(self) -> tuple[tuple[int, ...], int, int]:
        """Shape as numpy has it (ggml's is reversed), type and offset of a tensor."""
        (count,) = self._unpack("<I")
        if count > MAX_DIMS:
            raise BadInput(f"{self.file}: a tensor has {count} dimensions, GGUF allows {MAX_DIMS}")
        shape = self._unpack(f"<{count}Q")[::-1]
        ggml_type, offset = self._unpack("<IQ")
        return shape, ggml_type, offset

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._numbers(kind, 1)[0]
        kind, count = self._unpack("<IQ")
        if kind == STRING:
            return [self._string() for _ in range(count)]
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in NUMBERS:
            raise BadInput(f"{self.file}: metadata at byte {self.at} is of the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind])
        return list(np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist())

    def _string(self) -> str:
        begin = self.at
        try:
            return self._take(*self._unpack("<Q")).decode()
        except UnicodeDecodeError:
            raise BadInput(f"{self.file}: the text at byte {begin} is not UTF-8") from None

    def _unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, size: int) -> bytes:
        begin, self.at = self.at, self.at + size
        if self.at > len(self.pages):
            raise BadInput(f"{self.file} is cut short: its header needs {self.at} bytes, it has {len(self.pages)}")
        return self.pages[begin : self.at]


def _placed(
    file: Path, described: list[tuple[str, tuple[int, ...], int, int]], start: int, size: int
) -> dict[str, Entry]:
    """Name -> entry of tensors whose data begins at byte `start` of a file of `size` bytes."""
    entries: dict[str, Entry] = {}
    for name, shape, ggml_type, offset in described:
        place = f"{file}: {show(name)}"
        if name in entries:
            raise BadInput(f"{place} is there twice")
        if not shape or min(shape) < 1:
            raise BadInput(f"{place} has the shape {list(shape)}, not sizes above 0")
        block, width = _block(place, ggml_type)
        if shape[-1] % block:
            raise BadInput(f"{place} has rows of {shape[-1]} elements, its type has blocks of {block}")
        begin, needed = start + offset, math.prod(shape) // block * width
        if begin + needed > size:
            raise BadInput(f"{file} is cut short: {show(name)} ends at byte {begin + needed}, the file has {size}")
        if ggml_type in FLOATS:
            entries[name] = Entry(file, begin, begin + needed, shape, FLOATS[ggml_type])
        else:
            entries[name] = Blocks(file, begin, begin + needed, shape, torch.float32, ggml_type)
    ordered = sorted(entries.items(), key=lambda item: item[1].begin)
    for (before, one), (name, other) in pairwise(ordered):
        if other.begin < one.end:
            raise BadInput(f"{file}: {show(name)} overlaps {show(before)}")
    return dict(ordered)


def _block(place: str, ggml_type: int) -> tuple[int, int]:
    """Elements and bytes of a block of this type."""
    if ggml_type in FLOATS:
        return 1, FLOATS[ggml_type].itemsize
    try:
        return _decodable(ggml_type)
    except ImportError:
        raise BadInput(f"{place} is quantized, which the package gguf reads: `uv sync --extra gguf`") from None
    except (ValueError, NotImplementedError):
        raise BadInput(f"{place} is of ggml's type {ggml_type}, which the package gguf does not decode") from None


@lru_cache
def _decodable(ggml_type: int) -> tuple[int, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(ggml_type)
    dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    return GGML_QUANT_SIZES[kind]
