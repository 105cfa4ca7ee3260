"""XNNPACK's graphs, written down operator by operator, and the blobs that a `.pte` holds of them.

Upstream lowers a piece of a model to such a graph in seconds of Python passes; what comes out follows from a few
rules, which are written here. Tests compare every field with upstream's own lowering. Knows operators, shapes and
names of weights; nothing of models. The XNNPACK backend's serialization (executorch 1.5.1) is touched only here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    ConstantDataOffset,
    PerChannelGroupQuant,
    PerChannelQuant,
    PerTokenDynamicQuant,
    XNNAdd,
    XNNConcatenate2,
    XNNConvert,
    XNNDatatype,
    XNNFullyConnected,
    XNNGraph,
    XNNMultiply,
    XNNQuantizedTensorValue,
    XNNSigmoid,
    XNNStaticReshape,
    XNNStaticTranspose,
    XNNTensorValue,
    XNode,
    XValue,
)
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary

from export.quantization.recipe import Storage

NONE = 2**32 - 1  # XNN_INVALID_VALUE_ID
NAMED = 2**64 - 1  # offset of a constant that is found by its name
INPUT, OUTPUT = 1, 2  # XNN_VALUE_FLAG_EXTERNAL_INPUT, _OUTPUT


class Drawing:
    """A graph under way. Values are numbers; `dims` are upper bounds of dynamic dimensions, None a plain value.

    Debug handles count the nodes of upstream's graph, which has more of them than XNNPACK's: `steps` at each.
    """

    def __init__(self) -> None:
        self.graph = XNNGraph("0", [], [], 0, [], [], [ConstantDataOffset(0, 0)])
        self.dims: list[list[int]] = []
        self._handle = 0

    def input(self, dims: Sequence[int]) -> int:
        """A tensor from outside, float32."""
        return self._float(dims, INPUT)

    def output(self, value: int) -> None:
        """Hand a value out; outputs are numbered in the order of these calls, after the inputs."""
        tensor = self.graph.xvalues[value].xvalue_union
        assert isinstance(tensor, XNNTensorValue)
        tensor.external_id, tensor.flags = self._external(), OUTPUT
        self.graph.output_ids.append(value)

    def linear(self, x: int, rows: int, name: str, storage: Storage) -> int:
        """x [..., columns] times a weight [rows, columns] called `name` + ".weight", its scales ".scale"."""
        dims = self.dims[x]
        columns = dims[-1]
        if storage.bits == 32:
            weight = self._named(f"{name}.weight", 4 * rows * columns)
            plain = self._tensor([rows, columns], XNNDatatype.xnn_datatype_fp32, weight)
            self.graph.xvalues.append(XValue(plain))
            return self._product(x, plain.id_out, rows, 1)
        quantized = self._quantized(self._tensor(dims, XNNDatatype.xnn_datatype_qdint8), PerTokenDynamicQuant(1))
        self._node(XNNConvert(x, quantized, 0), steps=2)
        weight = self._named(f"{name}.weight", rows * columns * storage.bits // 8)
        scale = self._named(f"{name}.scale", rows * storage.groups * storage.scale_dtype.itemsize)
        if storage.bits == 4:
            plain = self._tensor([rows, columns], XNNDatatype.xnn_datatype_qbint4, weight)
            group, count = columns // storage.groups, rows * storage.groups
            filter_id = self._quantized(plain, PerChannelGroupQuant([], 0, group, None, scale, count))
        else:
            plain = self._tensor([rows, columns], XNNDatatype.xnn_datatype_qcint8, weight)
            filter_id = self._quantized(plain, PerChannelQuant([], 0, scale, rows))
        return self._product(quantized, filter_id, rows, 3)

    def reshape(self, x: int, new_shape: tuple[int, ...], dims: Sequence[int]) -> int:
        """0 in `new_shape` stands for the dynamic dimension."""
        out = self._float(dims)
        self._node(XNNStaticReshape(len(dims), new_shape, x, out, 0))
        return out

    def transpose(self, x: int, order: list[int], to: int | None = None) -> int:
        """Dimensions of x in another order; `to`: a value made before, whose number must be lower."""
        out = self._float([self.dims[x][i] for i in order]) if to is None else to
        self._node(XNNStaticTranspose(len(order), order, x, out, 0))
        return out

    def value(self, dims: Sequence[int]) -> int:
        """A computed tensor whose node comes later, float32."""
        return self._float(dims)

    def concatenate(self, x: int, y: int, axis: int) -> int:
        dims = list(self.dims[x])
        dims[axis] += self.dims[y][axis]
        out = self._float(dims)
        self._node(XNNConcatenate2(axis, x, y, NONE, NONE, out, 0, NONE))
        return out

    def add(self, x: int, y: int) -> int:
        out = self._float(self.dims[y])
        self._node(XNNAdd(x, y, out, 0))
        return out

    def multiply(self, x: int, y: int, steps: int = 1) -> int:
        out = self._float(self.dims[x])
        self._node(XNNMultiply(x, y, out, 0), steps)
        return out

    def silu(self, x: int) -> int:
        """x * sigmoid(x), which upstream's graph has as one node."""
        sigmoid = self._float(self.dims[x])
        self._node(XNNSigmoid(x, sigmoid, 0))
        return self.multiply(x, sigmoid, steps=0)

    def _product(self, x: int, weight: int, rows: int, steps: int) -> int:
        out = self._float([*self.dims[x][:-1], rows])
        self._node(XNNFullyConnected(x, weight, NONE, out, 0), steps)
        return out

    def _float(self, dims: Sequence[int], flags: int = 0) -> int:
        tensor = self._tensor(dims, XNNDatatype.xnn_datatype_fp32)
        if flags:
            tensor.external_id, tensor.flags = self._external(), flags
            self.graph.input_ids.append(tensor.id_out)
        self.graph.xvalues.append(XValue(tensor))
        return tensor.id_out

    def _tensor(self, dims: Sequence[int], datatype: XNNDatatype, constant: int = 0) -> XNNTensorValue:
        self.dims.append(list(dims))
        return XNNTensorValue(datatype, len(dims), list(dims), constant, NONE, 0, len(self.dims) - 1)

    def _quantized(
        self, tensor: XNNTensorValue, how: PerTokenDynamicQuant | PerChannelGroupQuant | PerChannelQuant
    ) -> int:
        self.graph.xvalues.append(XValue(XNNQuantizedTensorValue(tensor, how)))
        return tensor.id_out

    def _named(self, name: str, size: int) -> int:
        self.graph.constant_data.append(ConstantDataOffset(NAMED, size, name))
        return len(self.graph.constant_data) - 1

    def _external(self) -> int:
        self.graph.num_externs += 1
        return self.graph.num_externs - 1

    def _node(self, node: object, steps: int = 1) -> None:
        self._handle += steps
        self.graph.xnodes.append(XNode(node, self._handle, None))


class Blobs:
    """Serialized copies of one graph whose weights have other names.

    Serializing starts a process, so it is done once for each length of names: in the blob a name can be replaced by
    another of the same length (a flatbuffer has offsets, not separators).
    """

    def __init__(self, graph: XNNGraph) -> None:
        self.graph = graph
        self.names = [data.named_key for data in graph.constant_data if data.named_key]
        self._made: dict[tuple[int, ...], tuple[bytes, list[bytes]]] = {}

    def make(self, keys: dict[str, str]) -> bytes:
        """The blob that asks for `keys[name]` in the place of each name."""
        lengths = tuple(len(keys[name]) for name in self.names)
        if lengths not in self._made:
            stand_ins = [str(i).rjust(length, "#") for i, length in enumerate(lengths)]
            graph, renamed = copy.deepcopy(self.graph), iter(stand_ins)
            for data in graph.constant_data:
                data.named_key = next(renamed) if data.named_key else data.named_key
            self._made[lengths] = serialize_xnnpack_binary(graph, bytearray()), [text.encode() for text in stand_ins]
        blob, found = self._made[lengths]
        for name, stand_in in zip(self.names, found, strict=True):
            assert blob.count(stand_in) == 1, name
            blob = blob.replace(stand_in, keys[name].encode())
        return blob
