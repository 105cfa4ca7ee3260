"""Reads a `.pte` back: its program and, by name, the bytes of its weights, mapped and not copied.

Knows the file format, not the model. `export.quantization.packing` says what the bytes of a weight mean.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from executorch.exir._serialize._program import _get_extended_header
from executorch.exir.schema import DataLocation, Program

from checkpoints.errors import BadInput
from export.ptefile.magic import read_head
from export.quantization.packing import readable_name


@dataclass(frozen=True)
class PteFile:
    """One open file. Offsets count from the start of the file, sizes in bytes."""

    path: Path
    size: int
    program_size: int
    program: Program
    named: dict[str, tuple[int, int]]  # data key -> (offset, size)
    parts: dict[str, tuple[int, int]]  # the same by readable names, "layers.0.attention.wq.scale"
    constants: tuple[int, int]  # (offset, size) of the constant segment, (0, 0) without one
    delegates: list[tuple[int, int]]  # (offset, size) of each delegate's blob, in the order of `forward`'s delegates
    blobs: list[tuple[int, int]]  # the same of all methods
    _map: mmap.mmap

    def bytes(self, offset: int, size: int) -> memoryview:
        """A view of the mapped file."""
        return memoryview(self._map)[offset : offset + size]

    def data(self, name: str) -> memoryview:
        """The bytes of one part of a weight, e.g. "layers.0.attention.wq.scale"."""
        if name not in self.parts:
            raise BadInput(f"{self.path} holds no data called {name}")
        return self.bytes(*self.parts[name])


def open_pte(path: Path) -> PteFile:
    """Open and check a `.pte`; BadInput for anything that is not a whole ExecuTorch program with a `forward`."""
    head, size = read_head(path), path.stat().st_size
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    header = _get_extended_header(head)
    program_size = header.program_size if header else size
    base = header.segment_base_offset if header else 0
    whole = base + header.segment_data_size if header else size
    if program_size > size or whole > size:
        raise BadInput(f"{path} is cut short: its header says {max(program_size, whole)} bytes, the file has {size}")
    try:
        program = _flatbuffer_to_program(mapped[:program_size])
        spans = [(base + segment.offset, segment.size) for segment in program.segments]
        named = {entry.key: spans[entry.segment_index] for entry in program.named_data or []}
        constant = program.constant_segment
        constants = spans[constant.segment_index] if constant and constant.offsets and spans else (0, 0)
        blobs = {
            plan.name: [
                spans[delegate.processed.index]
                for delegate in plan.delegates
                if delegate.processed.location == DataLocation.SEGMENT
            ]
            for plan in program.execution_plan
        }
        delegates = blobs["forward"]
    except Exception as problem:  # the generated flatbuffer readers raise whatever a damaged offset leads to
        raise BadInput(f"{path} is a damaged ExecuTorch program ({type(problem).__name__})") from None
    for offset, length in spans:
        if offset + length > size:
            raise BadInput(f"{path}: a segment ends at byte {offset + length}, the file has {size}")
    parts = {readable_name(key): span for key, span in named.items()}
    every = [span for spans in blobs.values() for span in spans]
    return PteFile(path, size, program_size, program, named, parts, constants, delegates, every, mapped)
