"""Reads the linears and constants out of a delegate's blob, an XNNPACK graph in its flatbuffer.

Knows the serialized form (`backends/xnnpack/serialization/schema.fbs` of executorch 1.5.1; flatbuffers only grow at
the end, so older files read as well). Knows nothing of the `.pte` around it: weights stay names or offsets here. Read
by hand instead of with flatc, which would be a process for each of a hundred delegates.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flatbuffers import number_types as flags  # type: ignore[import-untyped]
from flatbuffers.encode import Get  # type: ignore[import-untyped]
from flatbuffers.table import Table  # type: ignore[import-untyped]

HEADER = struct.Struct("<4x4sHIIIQ")  # magic, header bytes, flatbuffer offset and bytes, constants' offset and bytes
NO_OFFSET = 2**64 - 1  # a constant that has a name instead
FULLY_CONNECTED = 2  # in union XNodeUnion
PLAIN, QUANTIZED = 1, 2  # union XValueUnion
PER_CHANNEL, PER_GROUP = 1, 4  # union XNNQuantParams
TRANSPOSED = 1  # XNN_FLAG_TRANSPOSE_WEIGHTS: the filter is [columns, rows]

# enum XNNDatatype -> (XNNPACK's name, what this project calls it, bits)
DATATYPES = {
    1: ("fp32", "float32", 32), 2: ("fp16", "float16", 16), 3: ("qint8", "int8", 8), 4: ("quint8", "uint8", 8),
    5: ("qint32", "int32", 32), 6: ("qcint8", "int8", 8), 7: ("qcint32", "int32", 32), 8: ("qcint4", "int4", 4),
    9: ("qdint8", "int8", 8), 10: ("qbint4", "int4", 4), 11: ("qpint8", "int8", 8), 12: ("int32", "int32", 32),
    13: ("pfp32", "float32", 32), 14: ("bf16", "bfloat16", 16),
}  # fmt: skip


class Unreadable(ValueError):
    """The blob is not an XNNPACK graph, or a damaged one."""


@dataclass(frozen=True)
class Constant:
    """Bytes a graph refers to: by name, or inline at `offset` from the start of the blob."""

    name: str | None
    offset: int | None
    size: int  # bytes


@dataclass(frozen=True)
class Value:
    """One tensor of the graph; `dims` are the upper bounds of dynamic dimensions."""

    datatype: str  # XNNPACK's name
    dims: tuple[int, ...]
    constant: Constant | None  # None where the tensor is computed
    scale: Constant | None  # where scales are stored apart from the graph
    inline_scale_bytes: int  # scales within the graph itself, as in old files
    group_size: int | None  # columns that share a scale, None unless in groups


@dataclass(frozen=True)
class FullyConnected:
    """One linear with a constant weight [rows, columns]."""

    input: Value
    filter: Value
    bias: Constant | None
    rows: int
    columns: int


@dataclass(frozen=True)
class XnnGraph:
    """What one delegate holds."""

    linears: tuple[FullyConnected, ...]
    values: tuple[Value, ...] = field(repr=False)
    nodes: int
    graph_bytes: int  # the blob without inline constants


def read_xnngraph(blob: memoryview) -> XnnGraph:
    """Parse a delegate's blob; Unreadable unless it is an XNNPACK graph with the header of 2024 and later."""
    try:
        magic, length, start, size, constants, constant_bytes = HEADER.unpack_from(blob)
    except struct.error:
        raise Unreadable(f"{len(blob)} bytes are no XNNPACK graph") from None
    if magic != b"XH00" or start < length or max(start + size, constants + constant_bytes) > len(blob):
        raise Unreadable(f"it starts with {bytes(blob[4:8])!r}, not with a whole XNNPACK graph's XH00")
    try:
        return _graph(bytes(blob[start : start + size]), constants, len(blob) - constant_bytes)
    except (struct.error, IndexError, KeyError, TypeError, UnicodeDecodeError) as problem:
        raise Unreadable(f"its XNNPACK graph is damaged ({type(problem).__name__})") from None


def _graph(data: bytes, base: int, graph_bytes: int) -> XnnGraph:
    root = _Record(Table(data, Get(flags.UOffsetTFlags.packer_type, data, 0)))
    table = [_constant(item, base) for item in root.records(8)]
    values: dict[int, Value] = {}
    for item in root.records(2):
        kind, record = item.number(0, flags.Uint8Flags), item.record(1)
        params, kind_of_params = None, 0
        if kind == QUANTIZED:
            kind_of_params, params = record.number(1, flags.Uint8Flags), record.record(2)
            record = record.record(0)
        # the node's operands are the ids of values, not their places in the list
        values[record.number(6)] = _value(record, kind_of_params, params, table)
    nodes = root.records(1)
    linears = []
    for item in nodes:
        if item.number(0, flags.Uint8Flags) == FULLY_CONNECTED:
            node = item.record(1)
            source, weight, bias = (values.get(node.number(i)) for i in range(3))
            if source is None or weight is None:
                raise IndexError("a linear without input or weight")
            if weight.constant is None or len(weight.dims) != 2:
                continue  # a product of two computed tensors
            rows, columns = weight.dims[::-1] if node.number(4) & TRANSPOSED else weight.dims
            linears.append(FullyConnected(source, weight, bias.constant if bias else None, rows, columns))
    return XnnGraph(tuple(linears), tuple(values.values()), len(nodes), graph_bytes)


def _constant(record: _Record, base: int) -> Constant:
    name, offset = record.text(2), record.number(0, flags.Uint64Flags)
    inline = not name and offset != NO_OFFSET
    return Constant(name or None, base + offset if inline else None, record.number(1, flags.Uint64Flags))


def _value(record: _Record, kind: int, params: _Record | None, table: list[Constant]) -> Value:
    scale, group_size, inline = None, None, 0
    if params is not None and kind in (PER_CHANNEL, PER_GROUP):
        group_size = params.number(2, flags.Int32Flags) if kind == PER_GROUP else None
        index = params.number(4 if kind == PER_GROUP else 2)
        scale = table[index] if index else None
        inline = 4 * params.length(0)
    index = record.number(3)
    datatype, _, bits = DATATYPES[record.number(0, flags.Int16Flags)]
    dims = record.numbers(2)
    constant = table[index] if index else None  # entry 0 stands for "not constant"
    if constant is not None and constant.size == 0:
        constant = Constant(constant.name, constant.offset, math.prod(dims) * bits // 8)
    return Value(datatype, dims, constant, scale, inline, group_size)


class _Record:
    """A flatbuffer table whose fields are called by their number in the schema."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def _at(self, number: int) -> int:
        offset = self.table.Offset(4 + 2 * number)
        return self.table.Pos + offset if offset else 0

    def number(self, number: int, kind: Any = flags.Uint32Flags) -> int:
        at = self._at(number)
        return self.table.Get(kind, at) if at else 0

    def text(self, number: int) -> str:
        at = self._at(number)
        return self.table.String(at).decode() if at else ""

    def record(self, number: int) -> _Record:
        at = self._at(number)
        if not at:
            raise IndexError(f"field {number} is missing")
        return _Record(Table(self.table.Bytes, self.table.Indirect(at)))

    def length(self, number: int) -> int:
        at = self._at(number)
        return self.table.VectorLen(at - self.table.Pos) if at else 0

    def _items(self, number: int, read: Callable[[int], Any]) -> list[Any]:
        at = self._at(number)
        first = self.table.Vector(at - self.table.Pos) if at else 0
        return [read(first + 4 * i) for i in range(self.length(number))]

    def numbers(self, number: int) -> tuple[int, ...]:
        return tuple(self._items(number, lambda at: self.table.Get(flags.Uint32Flags, at)))

    def records(self, number: int) -> list[_Record]:
        return self._items(number, lambda at: _Record(Table(self.table.Bytes, self.table.Indirect(at))))
