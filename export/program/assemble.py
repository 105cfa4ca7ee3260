"""Puts an ExecuTorch program in front of weights that are already in their place, making a `.pte` of them.

Layout of the file, every segment aligned to 128 bytes:

    program (flatbuffer with the extended header), padded to `program_room` bytes
    weights of delegates, one segment a part, called by their data names
    embedding and norms, called so as well, then the graph's own constants (rope tables): the constant segment
    XNNPACK's graphs, one segment a delegate

Upstream writes the program last-known-first, so it can only serialize weights it holds; with room kept in front of
them the weights need not wait for the graph. Private parts of `executorch.exir._serialize` (1.5.1) are touched here,
and for reading in `export.ptefile.reader`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from executorch.exir._serialize._flatbuffer_program import _program_to_flatbuffer
from executorch.exir._serialize._program import _ExtendedHeader, _insert_flatbuffer_header
from executorch.exir.schema import (
    BackendDelegateDataReference,
    DataLocation,
    DataSegment,
    NamedData,
    Program,
    SubsegmentOffsets,
)

from export.planning.places import ALIGNMENT, Placed, end
from export.program.trace import Graph
from export.quantization.packing import data_key

TENSOR_ALIGNMENT = 16  # bytes; `executorch.exir.tensor.ALIGNMENT`


def write_program(path: Path, base: int, graph: Graph, placed: Sequence[Placed], digests: Mapping[str, str]) -> None:
    """Complete the file at `path`, which holds the weights from `base` on, and force it to disk.

    `digests` are those of `export.program.weight_writer`, by the names of `placed`.
    """
    program = graph.program
    tail = bytearray()
    weights_end = end(placed)

    def append(data: bytes, alignment: int) -> int:
        tail.extend(bytes(-(weights_end + len(tail)) % alignment))
        tail.extend(data)
        return weights_end + len(tail) - len(data)

    where = {name: span for item in placed for name, span in item.data.items()}
    keys = {name: data_key(name, digests[item.name]) for item in placed for name in item.data}
    # The constants have names too, as segments that lie inside the constant segment: so a file can be read back.
    segments = [DataSegment(*span) for span in where.values()]
    program.named_data = [NamedData(key=keys[name], segment_index=index) for index, name in enumerate(where)]

    held = {index: name for name, index in graph.constants.items()}
    start = min(where[name][0] for name in graph.constants)
    if {name for name, (offset, _) in where.items() if offset >= start} != set(graph.constants):
        raise RuntimeError("the graph does not hold the constants that were placed for it")
    offsets = []
    for index, buffer in enumerate(program.constant_buffer):
        offset = where[held[index]][0] if index in held else append(buffer.storage, TENSOR_ALIGNMENT)
        offsets.append(offset - start if buffer.storage else 0)
    program.constant_segment = SubsegmentOffsets(segment_index=len(segments), offsets=offsets)
    program.constant_buffer = []
    segments.append(DataSegment(offset=start, size=weights_end + len(tail) - start))

    for plan in program.execution_plan:
        for delegate in plan.delegates:
            token = program.backend_delegate_data[delegate.processed.index].data
            blob = graph.blob(token, keys)
            delegate.processed = BackendDelegateDataReference(location=DataLocation.SEGMENT, index=len(segments))
            segments.append(DataSegment(offset=append(blob, ALIGNMENT), size=len(blob)))
    program.backend_delegate_data = []
    program.segments = segments

    head = _serialize(program, base, weights_end + len(tail))
    with open(path, "r+b") as file:
        file.write(head)
        file.seek(base + weights_end)
        file.write(tail)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _serialize(program: Program, base: int, segment_bytes: int) -> bytes:
    result = _program_to_flatbuffer(program, constant_tensor_alignment=None, delegate_alignment=None)
    room = _ExtendedHeader.EXPECTED_LENGTH + -_ExtendedHeader.EXPECTED_LENGTH % result.max_alignment
    size = room + len(result.data)
    if size > base:
        raise RuntimeError(f"the program takes {size} bytes, {base} were kept for it (program_room)")
    header = _ExtendedHeader(program_size=size, segment_base_offset=base, segment_data_size=segment_bytes).to_bytes()
    return _insert_flatbuffer_header(result.data, r"ET[0-9a-zA-Z][0-9a-zA-Z]", header.ljust(room, b"\0"))
