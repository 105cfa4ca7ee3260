"""Takes a `.pte` apart by its program and its XNNPACK graphs alone: linears, bytes by kind, planned memory.

Works on any ExecuTorch program with a `forward`, whoever wrote it: roles come from what operators do with a tensor,
names are used only where the file has readable ones. Reads the program and the graphs, never the weights. Knows
nothing of how a file should be; that is `export.inspect`.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import DataLocation, DelegateCall, ExecutionPlan, KernelCall, Tensor, TensorList

from export.ptefile.contents import Contents, Delegate, Embedding, Linear, Other
from export.ptefile.reader import PteFile
from export.quantization.packing import readable_name
from export.xnnpack.reader import DATATYPES, Constant, FullyConnected, Unreadable, XnnGraph, read_xnngraph

NAMES = {theirs: ours for theirs, ours, _ in DATATYPES.values()}
TYPES = {
    ScalarType.FLOAT: ("float32", 4), ScalarType.HALF: ("float16", 2), ScalarType.BFLOAT16: ("bfloat16", 2),
    ScalarType.DOUBLE: ("float64", 8), ScalarType.CHAR: ("int8", 1), ScalarType.BYTE: ("uint8", 1),
    ScalarType.SHORT: ("int16", 2), ScalarType.INT: ("int32", 4), ScalarType.LONG: ("int64", 8),
    ScalarType.BOOL: ("bool", 1),
}  # fmt: skip
XNNPACK = "XnnpackBackend"
HASH = re.compile(r"[0-9a-f]{64}")  # what upstream calls its weights
KINDS = ("embedding", "scales", "norms", "rope tables", "XNNPACK graphs", "program", "padding")
LAYER = re.compile(r"\blayers\.(\d+)\.")
ADAPTED = re.compile(r"layers\.\d+\.\w+\.(vision|speech)\.")

# operators by their name without namespace and overload
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul"}
PASSING = {"permute_copy", "t_copy", "transpose_copy", "view_copy", "_to_copy", "clone", "unsqueeze_copy"}
SLICING = {"slice_copy", "select_copy", "narrow_copy", "index", "index_select", "gather"}
NORMALIZING = {"mul", "rms_norm", "native_layer_norm", "delegate"}
ATTENTION = {"custom_sdpa", "sdpa_with_kv_cache", "scaled_dot_product_attention", "custom_quantized_sdpa"}
# Arguments that are caches if they have four dimensions, [1, context, ...] in all but the last two.
CACHES = {
    "update_cache": (1,),
    "custom_sdpa": (1, 2),
    "sdpa_with_kv_cache": (3, 4),
    "index_put_": (0,),
    "copy_": (0,),
}


def read_contents(pte: PteFile) -> Contents:
    """Read an open file's program and graphs; anything unreadable is told in `Delegate.problem`, not raised."""
    return _Reading(pte).contents()


def _part(name: str) -> str | None:
    """What a weight of a multimodal file is of, beside the text model."""
    for part in ("vision", "audio"):
        if name.startswith(f"{part}."):
            return f"{part} encoder"
    adapter = ADAPTED.match(name)
    return f"{adapter[1]} adapter" if adapter else None


def partition(claims: Iterable[tuple[int, int, str]], size: int) -> dict[str, int]:
    """Bytes of each kind in a file of `size` bytes: claims are (offset, bytes, kind), the first one wins a byte.

    What nobody claims is "padding". The sum is `size` whatever the claims are.
    """
    starts = sorted(
        (max(0, at), priority, max(0, min(size, at + length)), kind)
        for priority, (at, length, kind) in enumerate(claims)
    )
    edges = sorted({0, size} | {edge for at, _, end, _ in starts for edge in (at, end) if edge <= size})
    kinds: Counter[str] = Counter()
    open_claims: list[tuple[int, int, str]] = []  # priority first
    next_claim = 0
    for left, right in pairwise(edges):
        while next_claim < len(starts) and starts[next_claim][0] <= left:
            _, priority, end, kind = starts[next_claim]
            heapq.heappush(open_claims, (priority, end, kind))
            next_claim += 1
        while open_claims and open_claims[0][1] <= left:
            heapq.heappop(open_claims)
        kinds[open_claims[0][2] if open_claims else "padding"] += right - left
    return dict(kinds)


class _Reading:
    """One pass over a file. Claims are collected from the finest (a tensor) to the coarsest (the program)."""

    def __init__(self, pte: PteFile) -> None:
        self.pte, self.program = pte, pte.program
        self.plan: ExecutionPlan = next(plan for plan in self.program.execution_plan if plan.name == "forward")
        self.metadata = {
            plan.name: _value(plan)
            for plan in self.program.execution_plan
            if not plan.inputs and plan.outputs and not plan.delegates
        }
        caches = [tensor.sizes[1] for tensor in self._caches()]
        self.context = self.metadata.get("get_max_context_len") or max(caches, default=None)
        logits = [value for value in map(self._tensor, self.plan.outputs) if value is not None]
        self.vocab_size = logits[-1].sizes[-1] if logits and logits[-1].sizes else 0
        self.claims: list[tuple[int, int, str]] = []
        self.linears: list[Linear] = []
        self.others: list[Other] = []
        self.missing: list[str] = []
        self.embedding: Embedding | None = None
        self.names = {offset: name for name, (offset, _) in pte.parts.items()}

    def contents(self) -> Contents:
        delegates = [self._delegate(index) for index in range(len(self.plan.delegates))]
        operators = self._operators()
        self._name_head()
        start, size = self.pte.constants
        coarse = [
            (*span, "XNNPACK graphs" if delegate.backend == XNNPACK else "other delegates")
            for delegate, span in zip(delegates, self._blobs(), strict=True)
        ]
        coarse += [(*span, "XNNPACK graphs") for span in self.pte.blobs]  # of other methods
        coarse += [(*span, part) for name, span in self.pte.parts.items() if (part := _part(name))]
        coarse += [(start, size, "other constants"), (0, self.pte.program_size, "program")]
        coarse += [(offset, length, "unused data") for offset, length in self.pte.named.values()]
        kinds = dict.fromkeys(KINDS, 0) | partition(self.claims + coarse, self.pte.size)
        where = {(t.allocation_info.memory_id, t.allocation_info.memory_offset): _bytes(t) for t in self._caches()}
        kv_cache = sum(where.values())
        planned = sum(int(size) for size in self.plan.non_const_buffer_sizes)
        layers = {match[1] for linear in self.linears if (match := LAYER.search(linear.name))}
        attentions = sum(count for name, count in operators.items() if _base(name) in ATTENTION)
        return Contents(
            self.pte.size,
            kinds,
            len(layers) or attentions,
            self.vocab_size,
            tuple(self.linears),
            self.embedding,
            tuple(self.others),
            tuple(self.missing),
            tuple(delegates),
            operators,
            kv_cache,
            planned - kv_cache,
            self.metadata,
        )

    # ---- delegates

    def _blobs(self) -> Iterator[tuple[int, int]]:
        """(offset, size) of each delegate's blob; (0, 0) where it is inside the program's flatbuffer."""
        segments = iter(self.pte.delegates)
        for delegate in self.plan.delegates:
            yield next(segments) if delegate.processed.location == DataLocation.SEGMENT else (0, 0)

    def _delegate(self, index: int) -> Delegate:
        delegate = self.plan.delegates[index]
        at, size = list(self._blobs())[index]
        inline = memoryview(self.program.backend_delegate_data[delegate.processed.index].data) if not size else None
        if delegate.id != XNNPACK:
            return Delegate(delegate.id, (), 0, size or len(inline or b""), "only XNNPACK's graphs can be read")
        try:
            graph = read_xnngraph(self.pte.bytes(at, size) if inline is None else inline)
        except Unreadable as problem:
            return Delegate(delegate.id, (), 0, size, str(problem))
        place = at if inline is None else None  # inline blobs stay part of the program
        found = [self._linear(item, index, number, place) for number, item in enumerate(graph.linears)]
        self.linears += found
        self._other_values(graph, index, place)
        return Delegate(delegate.id, tuple(item.name for item in found), graph.nodes, graph.graph_bytes, None)

    def _claim(self, constant: Constant, kind: str, blob: int | None) -> None:
        if constant.name is not None:
            if constant.name not in self.pte.named:
                self.missing.append(constant.name)
                return
            self.claims.append((*self.pte.named[constant.name], kind))
        elif constant.offset is not None and blob is not None:
            self.claims.append((blob + constant.offset, constant.size, kind))

    def _linear(self, item: FullyConnected, delegate: int, number: int, blob: int | None) -> Linear:
        weight, scale = item.filter.constant, item.filter.scale
        assert weight is not None
        kind = NAMES[item.filter.datatype]
        self._claim(weight, f"{kind} weights", blob)
        if scale is not None:
            self._claim(scale, "scales", blob)
        if item.bias is not None:
            self._claim(item.bias, "other constants", blob)
        name = readable_name(weight.name or "")
        readable = name and not HASH.search(name)
        activation = NAMES[item.input.datatype]
        return Linear(
            name.removesuffix(".weight") if readable else f"linear {number} of delegate {delegate}",
            False,
            delegate,
            "XNNFullyConnected",
            item.rows,
            item.columns,
            kind,
            item.filter.group_size,
            f"dynamic {activation}" if item.input.datatype in ("qdint8", "qpint8") else activation,
            weight.size,
            scale.size if scale else item.filter.inline_scale_bytes,
        )

    def _other_values(self, graph: XnnGraph, delegate: int, blob: int | None) -> None:
        """Constants of other nodes: a vector is a norm's weight, anything else is told apart."""
        used = {id(linear.filter.constant) for linear in graph.linears} | {id(item.bias) for item in graph.linears}
        for number, value in enumerate(graph.values):
            if value.constant is None or id(value.constant) in used:
                continue
            norm = math.prod(value.dims) == max(value.dims, default=0) > 1 and NAMES[value.datatype] == "float32"
            self._claim(value.constant, "norms" if norm else "other constants", blob)
            if not norm:
                name = readable_name(value.constant.name or "")
                name = f"value {number} of delegate {delegate}" if not name or HASH.search(name) else name
                self.others.append(Other(name, NAMES[value.datatype], value.dims, value.constant.size))

    # ---- the program's own operators and constants

    def _tensor(self, index: int) -> Tensor | None:
        value = self.plan.values[index].val
        return value if isinstance(value, Tensor) else None

    def _calls(self) -> Iterator[tuple[str, list[int]]]:
        """(operator, indices of its arguments' values) in order; "delegate" for a delegate."""
        for chain in self.plan.chains:
            for instruction in chain.instructions:
                call = instruction.instr_args
                if isinstance(call, KernelCall):
                    yield self.plan.operators[call.op_index].name, call.args
                elif isinstance(call, DelegateCall):
                    yield "delegate", call.args

    def _operators(self) -> dict[str, int]:
        """Count what is not delegated, and tell each constant's kind from the operators that read it."""
        counts = Counter(name for name, _ in self._calls() if name != "delegate")
        uses: dict[int, list[tuple[str, int, list[int]]]] = defaultdict(list)  # of a constant buffer
        holds = {
            index: value.val.data_buffer_idx
            for index, value in enumerate(self.plan.values)
            if isinstance(value.val, Tensor) and value.val.allocation_info is None and value.val.data_buffer_idx > 0
        }
        tensors = {buffer: tensor for index, buffer in holds.items() if (tensor := self._tensor(index)) is not None}
        seen_otherwise: dict[int, int] = {}
        for name, arguments in self._calls():
            for place, argument in enumerate(arguments):
                value = self.plan.values[argument].val
                for index in value.items if isinstance(value, TensorList) else (argument,):
                    if index in holds:
                        uses[holds[index]].append((name, place, arguments))
            if _base(name) in PASSING and arguments[0] in holds:
                seen_otherwise[arguments[-1]] = holds[arguments[0]]
            if _base(name) in PRODUCTS or "linear" in _base(name):
                for index in dict.fromkeys(arguments):
                    buffer = holds.get(index, seen_otherwise.get(index))
                    if buffer is not None and len(tensors[buffer].sizes) == 2:
                        # x @ w has w as [columns, rows] unless something turned it
                        turned = _base(name) in PRODUCTS and index in holds
                        self.linears.append(self._undelegated(name, buffer, tensors[buffer], turned))
        undelegated = {linear.name for linear in self.linears if linear.delegate is None}
        for buffer, tensor in tensors.items():
            self._constant(buffer, tensor, uses[buffer], undelegated)
        return dict(counts.most_common())

    def _place(self, buffer: int, tensor: Tensor) -> tuple[str, int, int | None]:
        """Name, bytes and offset in the file (None: not in a segment) of a constant."""
        size = _bytes(tensor)
        segment = self.program.constant_segment
        if segment is None or buffer >= len(segment.offsets) or not self.pte.constants[1]:
            return f"constant {buffer}", size, None
        offset = self.pte.constants[0] + segment.offsets[buffer]
        return self.names.get(offset, f"constant {buffer}"), size, offset

    def _undelegated(self, operator: str, buffer: int, tensor: Tensor, turned: bool) -> Linear:
        name, size, _ = self._place(buffer, tensor)
        rows, columns = reversed(tensor.sizes) if turned else tensor.sizes
        return Linear(
            name.removesuffix(".weight"),
            False,
            None,
            operator,
            rows,
            columns,
            _dtype(tensor)[0],
            None,
            "not delegated",
            size,
            0,
        )

    def _constant(
        self, buffer: int, tensor: Tensor, uses: list[tuple[str, int, list[int]]], undelegated: set[str]
    ) -> None:
        name, size, offset = self._place(buffer, tensor)
        dtype, _ = _dtype(tensor)
        bases = {_base(operator) for operator, _, _ in uses}
        lookups = [use for use in uses if "embedding" in _base(use[0])]
        vector = len(tensor.sizes) == 1 and tensor.sizes[0] > 1 and dtype == "float32"
        if lookups:
            operator, place, arguments = lookups[0]
            kind = "scales" if place else "embedding"
            if not place:
                self.embedding = self._embedding(name, size, dtype, tensor, operator, arguments)
        elif name.removesuffix(".weight") in undelegated:
            kind = f"{dtype} weights"
        elif dtype == "float32" and tensor.sizes[:1] == [self.context] and bases & SLICING:
            kind = "rope tables"
        elif vector and bases & NORMALIZING:
            kind = "norms"
        else:
            kind = "other constants"
            self.others.append(Other(name, dtype, tuple(tensor.sizes), size))
        if offset is not None:
            self.claims.append((offset, size, kind))

    def _embedding(
        self, name: str, size: int, dtype: str, tensor: Tensor, operator: str, arguments: list[int]
    ) -> Embedding:
        rows, stored = tensor.sizes
        bits = re.search(r"embedding_(\d)bit", operator)
        columns = stored * 8 // int(bits[1]) if bits else stored
        scale = self._tensor(arguments[1]) if dtype in ("int8", "uint8") else None
        scales = math.prod(scale.sizes) if scale else 0
        group_size = columns * rows // scales if scales > rows else None
        kind = f"int{bits[1]}" if bits else dtype
        return Embedding(
            name.removesuffix(".weight"),
            operator,
            rows,
            columns,
            kind,
            group_size,
            size,
            _bytes(scale) if scale else 0,
        )

    def _name_head(self) -> None:
        """The last linear as wide as the logits is the head."""
        for number in reversed(range(len(self.linears))):
            linear = self.linears[number]
            if linear.rows == self.vocab_size:
                nameless = linear.name.startswith(("linear ", "constant "))
                self.linears[number] = replace(linear, is_head=True, name="lm_head" if nameless else linear.name)
                return

    def _caches(self) -> Iterator[Tensor]:
        """Planned tensors that operators read or update as KV caches, each as often as it is used."""
        for name, arguments in self._calls():
            for place in CACHES.get(_base(name), ()):
                tensor = self._tensor(arguments[place])
                if tensor is not None and tensor.allocation_info is not None and len(tensor.sizes) == 4:
                    yield tensor


def _base(operator: str) -> str:
    return operator.rsplit("::", 1)[-1]


def _dtype(tensor: Tensor) -> tuple[str, int]:
    """Name and bytes of an element."""
    return TYPES.get(tensor.scalar_type, (tensor.scalar_type.name.lower(), 1))


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.sizes) * _dtype(tensor)[1]


def _value(plan: ExecutionPlan) -> Any:
    """What a constant method returns: one value, or a list."""
    values = [next(iter(vars(plan.values[index].val).values()), None) for index in plan.outputs]
    return values[0] if len(values) == 1 else values
