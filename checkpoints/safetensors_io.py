"""One safetensors file: reads and checks its header, and writes a header in front of data that follows.

The layout is that of the safetensors README: 8-byte little-endian length, JSON, packed data. Knows nothing of models.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from checkpoints.errors import BadInput, show
from checkpoints.files import POINTER, check_fetched

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies, byte `begin` to `end` of its file."""

    file: Path
    begin: int
    end: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_tensor(entry: Entry) -> Tensor:
    """One small tensor, read and not mapped."""
    with entry.file.open("rb") as file:
        file.seek(entry.begin)
        data = bytearray(file.read(entry.end - entry.begin))
    return torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)


def make_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The start of a file whose (meta) tensors are packed in this order; name -> byte where its data begins."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + header[name]["data_offsets"][0] for name in tensors}


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Tensors of a file in the order of their data, and the metadata (strings, if the file is sound).

    Raises BadInput unless the data is covered exactly once, to the last byte.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(len(POINTER))
            check_fetched(file, start)
            length = int.from_bytes(start[:8], "little")
            handle.seek(8)
            text = handle.read(length) if length <= min(size - 8, MAX_HEADER) else b""
    except OSError as problem:
        raise BadInput(f"{file} cannot be read: {problem.strerror}") from None
    if size < 8 or length > size - 8:
        raise BadInput(f"{file} is cut short: its header needs {8 + length} bytes, the file has {size}")
    if length > MAX_HEADER:
        raise BadInput(f"{file}: a header of {length} bytes is over the limit of {MAX_HEADER}")
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"{file}: the header is not JSON: {show(str(problem))}") from None
    if not isinstance(header, dict):
        raise BadInput(f"{file}: the header is a JSON {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", None)
    entries = [(name, _read_entry(file, name, fields, 8 + length)) for name, fields in header.items()]
    entries.sort(key=lambda item: (item[1].begin, item[1].end))
    end = 8 + length
    for name, entry in entries:
        if entry.begin != end:
            fault = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
            raise BadInput(f"{file}: {show(name)} {fault}: it starts at byte {entry.begin}, not {end}")
        end = entry.end
    if end > size:
        raise BadInput(f"{file} is cut short: its tensors end at byte {end}, the file has {size}")
    if end < size:
        raise BadInput(f"{file} has bytes after its tensors: they end at byte {end}, the file has {size}")
    return dict(entries), metadata if isinstance(metadata, dict) else {}


def _read_entry(file: Path, name: str, fields: Any, start: int) -> Entry:
    place = f"{file}: {show(name)}"
    if not isinstance(fields, dict):
        raise BadInput(f"{place} must be an object, it is {show(fields)}")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadInput(f"{place} has the unknown dtype {show(dtype)}")
    if not _naturals(shape):
        raise BadInput(f"{place} has the shape {show(shape)}, not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise BadInput(f"{place} has the data_offsets {show(offsets)}, not two byte offsets")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise BadInput(f"{place} is {dtype} of shape {shape}, {needed} bytes, but has {end - begin} bytes")
    return Entry(file, start + begin, start + end, tuple(shape), DTYPES[dtype])


def _naturals(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > 8:
        return False
    return all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found
