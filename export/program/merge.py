"""Makes one program of several methods: each is emitted by itself, and made deep by itself.

What they have in common is kept once: named constants by their names, others by their bytes. All decoders share one
KV cache.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence

from executorch.exir.schema import (
    BackendDelegateDataReference,
    BackendDelegateInlineData,
    DataLocation,
    Program,
    Tensor,
)

from export.models.family import Method
from export.program.arenas import set_caches_apart

Emitted = tuple[Program, dict[str, int]]  # a program, and which of its constant buffers are called what


def copied(program: Program, constants: dict[str, int], method: Method) -> Iterator[Emitted]:
    """Programs of the methods that have the same code as this one, with other delegates."""
    for name, renamed in method.copies.items():
        plan = copy.deepcopy(next(plan for plan in program.execution_plan if plan.name == method.name))
        plan.name = name
        tokens = [renamed(delegate.data.decode()) for delegate in program.backend_delegate_data]
        data = [BackendDelegateInlineData(token.encode()) for token in tokens]
        yield dataclasses.replace(program, execution_plan=[plan], backend_delegate_data=data), constants


def merge(programs: Sequence[Emitted]) -> Emitted:
    """One program with the methods of all; the first is changed, and where it is the only one it is left as it is."""
    (program, constants), *others = programs
    if not others:
        return program, constants
    for one, _ in programs:
        for plan in one.execution_plan:
            set_caches_apart(plan)
    by_name = dict(constants)
    # Never by the bytes of a named one, which only stand in for a weight's.
    unnamed = set(range(len(program.constant_buffer))) - set(constants.values())
    by_bytes = {bytes(program.constant_buffer[index].storage): index for index in sorted(unnamed)}
    for other, names in others:
        called = {index: name for name, index in names.items()}
        moved = {}
        for index, buffer in enumerate(other.constant_buffer):
            known, key = (by_name, called[index]) if index in called else (by_bytes, bytes(buffer.storage))
            if key not in known:
                known[key] = len(program.constant_buffer)  # type: ignore[index]
                program.constant_buffer.append(buffer)
            moved[index] = known[key]  # type: ignore[index]
        _append(program, other, moved)
    return program, by_name


def _append(program: Program, other: Program, moved: dict[int, int]) -> None:
    """Add the methods of `other`, whose constant buffers have the numbers `moved` in `program`."""
    first = len(program.backend_delegate_data)
    program.backend_delegate_data += other.backend_delegate_data
    for plan in other.execution_plan:
        for value in plan.values:
            if isinstance(value.val, Tensor) and value.val.data_buffer_idx:
                value.val.data_buffer_idx = moved[value.val.data_buffer_idx]
        for delegate in plan.delegates:
            delegate.processed = BackendDelegateDataReference(DataLocation.INLINE, first + delegate.processed.index)
        program.execution_plan.append(plan)
