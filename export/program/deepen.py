"""Makes a deep model's program of a shallow one's: the second layer's part is repeated, with other numbers.

Every layer is the same code, and export, edge passes, planning and emitting take most of a second a layer. So
upstream emits a model of SHALLOW layers; the second one is found in its program by who refers to what, checked to be
the third one's image, and repeated until there are as many layers as wanted. Memory is then planned by upstream's own
algorithm.

What a layer has of its own in a program (executorch.exir.schema of 1.5.1): instructions; the values they use first,
most of them in one row, norms, KV caches and lifted scalars among the first values; the constant buffers of its
norms; delegates and their data, here tokens that name the layer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from executorch.exir.schema import (
    BackendDelegate,
    BackendDelegateDataReference,
    BackendDelegateInlineData,
    DataLocation,
    DelegateCall,
    EValue,
    ExecutionPlan,
    Instruction,
    Program,
    Tensor,
)

from export.program.arenas import LISTS, Unknown, arguments, planned_anew, replan, used

SHALLOW = 3  # layers: the first, the one that is repeated, the last
LAYER = re.compile(r"\blayers\.(\d+)\.")


def deepen(program: Program, constants: dict[str, int], layers: int) -> dict[str, int]:
    """Make a program of SHALLOW layers one of `layers`; its named constant buffers afterwards.

    Raises Unknown, before any change.
    """
    plan = next(plan for plan in program.execution_plan if plan.delegates)
    shallow = [delegate.data for delegate in program.backend_delegate_data]
    per_layer = sum(b"layers.0." in token for token in shallow)
    before = next(index for index, token in enumerate(shallow) if b"layers.0." in token)
    if planned_anew(plan) != plan:
        raise Unknown("memory is planned in another way")
    first, middle, last = _layers(plan, shallow, before, per_layer)
    carried = _check_image(plan, middle, last, per_layer)
    of_first = _own_buffers(plan, first)
    values, buffers = _Rows(middle.owned, layers), _Rows(_own_buffers(plan, middle), layers)
    after, copies = set(last.owned), range(layers - SHALLOW + 1)

    def value(number: int, copy_number: int) -> int:
        """What a value of the shallow program is called by a copy of the middle layer, 0 being itself."""
        if number in carried and copy_number:  # the result of the layer before
            return values.moved(carried[number], copy_number - 1)
        return values.moved(number, copy_number)

    def behind(number: int) -> int:
        """What it is called by all that comes after the copies."""
        return values.moved(number, layers - SHALLOW if number in carried.values() else 0)

    def moved_value(number: int, copy_number: int) -> EValue:
        result = copy.deepcopy(plan.values[number])
        if isinstance(result.val, LISTS):
            items = result.val.items
            result.val.items = [behind(i) if number in after else value(i, copy_number) for i in items]
        elif isinstance(result.val, Tensor) and result.val.data_buffer_idx:
            result.val.data_buffer_idx = buffers.moved(result.val.data_buffer_idx, copy_number)
        return result

    (chain,) = plan.chains
    old, chain.instructions = chain.instructions, []
    for one in old[: middle.start]:
        chain.instructions.append(_renamed(one, lambda number: value(number, 0), 0))
    for c in copies:
        for one in old[middle.start : middle.stop]:
            chain.instructions.append(_renamed(one, lambda number, c=c: value(number, c), per_layer * c))  # type: ignore[misc]
    for one in old[middle.stop :]:
        chain.instructions.append(_renamed(one, behind, per_layer * (layers - SHALLOW)))
    plan.values = [moved_value(*place) for place in values.places(len(plan.values))]
    plan.inputs, plan.outputs = (
        [behind(number) for number in plan.inputs],
        [behind(number) for number in plan.outputs],
    )

    one_layer, head = shallow[before : before + per_layer], shallow[before + per_layer * SHALLOW :]
    repeated = [LAYER.sub(f"layers.{i}.", token.decode()).encode() for i in range(layers) for token in one_layer]
    tokens = shallow[:before] + repeated + head
    program.backend_delegate_data = [BackendDelegateInlineData(token) for token in tokens]
    plan.delegates = [
        BackendDelegate(plan.delegates[0].id, BackendDelegateDataReference(DataLocation.INLINE, index), [])
        for index in range(len(tokens))
    ]
    program.constant_buffer = [program.constant_buffer[n] for n, _ in buffers.places(len(program.constant_buffer))]
    replan(plan)
    return dict(_named(constants, buffers, of_first))


@dataclass
class _Layer:
    """Instructions start … stop, and the sorted values that are used there first."""

    start: int
    stop: int
    owned: list[int]


def _layers(plan: ExecutionPlan, tokens: list[bytes], before: int, per_layer: int) -> list[_Layer]:
    """A layer ends with its last delegate; what comes before the first layer counts as its own.

    `before` delegates come before those of the layers, `per_layer` of each.
    """
    (chain,) = plan.chains
    calls = [(index, one.instr_args) for index, one in enumerate(chain.instructions)]
    last_of_layers = {before + per_layer * (layer + 1) - 1 for layer in range(SHALLOW)}
    ends = [i + 1 for i, call in calls if isinstance(call, DelegateCall) and call.delegate_index in last_of_layers]
    of_layers = [bool(LAYER.search(token.decode())) for token in tokens]
    if not all(of_layers[before : before + per_layer * SHALLOW]) or len(ends) != SHALLOW:
        raise Unknown(f"{len(plan.delegates)} delegates")
    taken = set(plan.inputs)
    found = []
    for start, stop in zip([0, *ends], ends, strict=False):
        used_here = [number for one in chain.instructions[start:stop] for number in arguments(one)]
        owned = set(used(plan, used_here)) - taken
        taken |= owned
        found.append(_Layer(start, stop, sorted(owned)))
    return found


def _check_image(plan: ExecutionPlan, one: _Layer, two: _Layer, per_layer: int) -> dict[int, int]:
    """Check that `two` is `one` with other numbers; what `one` takes of the layer before -> its own such result."""
    own, other = set(one.owned), set(two.owned)
    image: dict[int, int] = {}
    carried: dict[int, int] = {}

    def pair(a: int, b: int) -> None:
        known, what = (image, b in other) if a in own else (carried, b in own)
        if a not in own and a == b:
            return
        if not what or known.setdefault(a, b) != b:
            raise Unknown(f"value {a} is not to the second layer what {b} is to the third")
        x, y = plan.values[a].val, plan.values[b].val
        if isinstance(x, LISTS) and isinstance(y, LISTS) and type(x) is type(y) and len(x.items) == len(y.items):
            for items in zip(x.items, y.items, strict=True):
                pair(*items)
        elif _comparable(x) != _comparable(y):
            raise Unknown(f"values {a} and {b} differ")

    instructions = plan.chains[0].instructions
    if one.stop - one.start != two.stop - two.start:
        raise Unknown("layers of other lengths")
    for a, b in zip(instructions[one.start : one.stop], instructions[two.start : two.stop], strict=True):
        x, y = a.instr_args, b.instr_args
        if len(arguments(a)) != len(arguments(b)):
            raise Unknown("other instructions")
        for numbers in zip(arguments(a), arguments(b), strict=True):
            pair(*numbers)
        same = copy.deepcopy(x)
        same.args = arguments(b)  # type: ignore[union-attr]
        if isinstance(same, DelegateCall):
            same.delegate_index += per_layer
        if same != y:
            raise Unknown("other instructions")
    if [image.get(number) for number in one.owned] != two.owned:
        raise Unknown("values in another order")
    return carried


def _comparable(inner: object) -> object:
    """A value without what differs from layer to layer."""
    if not isinstance(inner, Tensor):
        return inner
    planned = inner.allocation_info is not None
    return {**vars(inner), "allocation_info": planned, "data_buffer_idx": inner.data_buffer_idx > 0}


def _own_buffers(plan: ExecutionPlan, layer: _Layer) -> list[int]:
    """Constant buffers that only this layer refers to."""
    own, users = set(layer.owned), {True: set[int](), False: set[int]()}
    for number, value in enumerate(plan.values):
        if isinstance(value.val, Tensor) and value.val.data_buffer_idx:
            users[number in own].add(value.val.data_buffer_idx)
    return sorted(users[True] - users[False])


class _Rows:
    """Numbers in order, of which each row of consecutive ones of the middle layer is repeated in its place."""

    def __init__(self, owned: list[int], layers: int) -> None:
        self.extra, self.rows = layers - SHALLOW, list[range]()
        for number in owned:
            if self.rows and self.rows[-1].stop == number:
                self.rows[-1] = range(self.rows[-1].start, number + 1)
            else:
                self.rows.append(range(number, number + 1))

    def moved(self, number: int, copy_number: int) -> int:
        """The number that it, or its counterpart in a copy, has afterwards."""
        if number < 0:  # None in a list
            return number
        shift = sum(self.extra * len(row) for row in self.rows if row.stop <= number)
        inside = next((len(row) for row in self.rows if number in row), 0)
        return number + shift + copy_number * inside

    def places(self, count: int) -> Iterator[tuple[int, int]]:
        """All numbers afterwards, in order, as the old number and that of the copy."""
        for number in range(count):
            yield number, 0
            for row in self.rows:
                if number == row.stop - 1:
                    yield from ((inside, c + 1) for c in range(self.extra) for inside in row)


def _named(constants: dict[str, int], buffers: _Rows, first: list[int]) -> Iterator[tuple[str, int]]:
    """Constants by the names they have in the deep model; `first` are those of the first layer.

    A part may begin with what the layer before ends with, a norm behind the last delegate: then its constants are not
    all of one layer by name.
    """
    for name, number in constants.items():
        match = LAYER.search(name)
        layer = int(match[1]) if match else 0
        repeated = any(number in row for row in buffers.rows)
        for c in range(buffers.extra + 1 if repeated else 1):
            there = layer + c if repeated or number in first else layer + buffers.extra
            yield LAYER.sub(f"layers.{there}.", name), buffers.moved(number, c)


def _renamed(instruction: Instruction, value: Callable[[int], int], delegates: int) -> Instruction:
    result = copy.deepcopy(instruction)
    call: Any = result.instr_args
    call.args = [value(number) for number in call.args]
    if isinstance(call, DelegateCall):
        call.delegate_index += delegates
    return result
