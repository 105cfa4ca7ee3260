"""Plans where the tensors of a program lie in memory, by upstream's own algorithm and from the instructions alone.

So a program can be changed after upstream emitted it. Touches `executorch.exir.memory_planning` of 1.5.1.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from math import prod
from types import SimpleNamespace
from typing import Any

from executorch.exir.memory_planning import greedy
from executorch.exir.schema import (
    DelegateCall,
    ExecutionPlan,
    Instruction,
    IntList,
    KernelCall,
    OptionalTensorList,
    Tensor,
    TensorList,
)
from executorch.exir.tensor import ALIGNMENT, enum_to_scalar_map

XNNPACK_PADDING = 64  # bytes behind the arena, as `apply_algo` of 1.5.1 has it
LISTS = (IntList, TensorList, OptionalTensorList)  # their items are numbers of values
CACHE_ARENA = 2  # of the KV cache where methods share it; all else lies in arena 1


class Unknown(Exception):
    """The program is not as this version of ExecuTorch makes it."""


def set_caches_apart(plan: ExecutionPlan) -> None:
    """Put the KV cache into an arena of its own, one behind the other in the order of the layers.

    So methods that are loaded with common arenas share one cache, and no other method writes over it: what upstream's
    `share_mutable_buffers` does for methods that it plans together. Does nothing to a method without a cache.
    """
    caches: dict[int, None] = {}
    for chain in plan.chains:
        for one in chain.instructions:
            call = one.instr_args
            if isinstance(call, KernelCall) and plan.operators[call.op_index].name == "llama::update_cache":
                caches[call.args[1]] = None
    if not caches:
        return
    replan(plan, caches)
    at = 0
    for number in caches:
        tensor: Any = plan.values[number].val
        info, size = tensor.allocation_info, _Spec(tensor).allocated_memory
        info.memory_id = CACHE_ARENA
        info.memory_offset_low, info.memory_offset_high = at & 0xFFFFFFFF, at >> 32
        at += size
    plan.non_const_buffer_sizes = [*plan.non_const_buffer_sizes[:CACHE_ARENA], at]


def replan(plan: ExecutionPlan, apart: Collection[int] = ()) -> None:
    """Give every planned tensor its place, but for those `apart`; lifetimes are read off the instructions."""
    specs = {
        number: _Spec(value.val)
        for number, value in enumerate(plan.values)
        if isinstance(value.val, Tensor) and value.val.allocation_info is not None and number not in apart
    }
    (chain,) = plan.chains
    for index, instruction in enumerate(chain.instructions):
        for number in used(plan, arguments(instruction)):
            if number in specs:
                specs[number].use(index)
    for number, spec in specs.items():
        if number < min(plan.inputs, default=0):  # caches come before the inputs, and outlive a call
            spec.lifetime = [-1, len(chain.instructions)]
        elif number in plan.outputs:
            spec.lifetime[1] = len(chain.instructions)
    found = greedy(ALIGNMENT, specs.values(), SimpleNamespace(), None, XNNPACK_PADDING)  # type: ignore[arg-type]
    for number, spec in specs.items():
        info: Any = plan.values[number].val.allocation_info  # type: ignore[union-attr]
        place = found.spec_dict[spec]  # type: ignore[index]
        info.memory_id = place.mem_id
        info.memory_offset_low, info.memory_offset_high = place.mem_offset & 0xFFFFFFFF, place.mem_offset >> 32
    plan.non_const_buffer_sizes = list(found.bufsizes)


class _Spec:
    """What `greedy` asks of a TensorSpec."""

    def __init__(self, tensor: Tensor) -> None:
        size = prod(tensor.sizes) * enum_to_scalar_map[tensor.scalar_type].itemsize
        self.allocated_memory = -(-size // ALIGNMENT) * ALIGNMENT
        self.mem_id = self.storage_base = None
        self.lifetime: list[int | None] = [None, None]

    def realign(self, alignment: int) -> None:
        assert alignment == ALIGNMENT

    def use(self, index: int) -> None:
        self.lifetime = [index if self.lifetime[0] is None else self.lifetime[0], index]


def planned_anew(plan: ExecutionPlan) -> ExecutionPlan:
    result = copy.deepcopy(plan)
    replan(result)
    return result


def arguments(instruction: Instruction) -> list[int]:
    call = instruction.instr_args
    if not isinstance(call, (KernelCall, DelegateCall)):
        raise Unknown(f"a {type(call).__name__}")
    return call.args


def used(plan: ExecutionPlan, numbers: list[int]) -> Iterator[int]:
    """Values and what lists among them list."""
    for number in numbers:
        if number >= 0:
            yield number
            inner = plan.values[number].val
            if isinstance(inner, LISTS):
                yield from used(plan, inner.items)
