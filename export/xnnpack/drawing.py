"""XNNPACK's graphs, written down operator by operator, and the blobs that a `.pte` holds of them.

Upstream lowers a piece of a model to such a graph in seconds of Python passes; what comes out follows from a few
rules, which are written here. Tests compare every field with upstream's own lowering. Knows operators, shapes and
names of weights; nothing of models. The XNNPACK backend's serialization (executorch 1.5.1) is touched only here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    ConstantDataOffset,
    OutputMinMax,
    PerChannelGroupQuant,
    PerChannelQuant,
    PerTokenDynamicQuant,
    XNNAdd,
    XNNAvgPooling2d,
    XNNBatchMatrixMultiply,
    XNNConcatenate2,
    XNNConv2d,
    XNNConvert,
    XNNDatatype,
    XNNDepthwiseConv2d,
    XNNFullyConnected,
    XNNGelu,
    XNNGraph,
    XNNMultiply,
    XNNQuantizedTensorValue,
    XNNSigmoid,
    XNNSoftmax,
    XNNStaticReshape,
    XNNStaticTranspose,
    XNNSubtract,
    XNNTensorValue,
    XNode,
    XValue,
)
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary

from export.quantization.recipe import Storage

NONE = 2**32 - 1  # XNN_INVALID_VALUE_ID
NAMED = 2**64 - 1  # offset of a constant that is found by its name
GELU_TANH = tuple(2 * (2 / math.pi) ** 0.5 * factor for factor in (1, 0.044715))
INPUT, OUTPUT = 1, 2  # XNN_VALUE_FLAG_EXTERNAL_INPUT, _OUTPUT
RELU = OutputMinMax(output_min=0, output_max="+inf")


class Drawing:
    """A graph under way. Values are numbers; `dims` are upper bounds of dynamic dimensions, None a plain value.

    Constants are what XNNPACK packs: weights and biases. All others must be inputs, however small: with a weight
    cache the backend (1.5.1) frees what a graph's other constants point to.

    Debug handles count the nodes of upstream's graph, which has more of them than XNNPACK's: `steps` at each.
    """

    def __init__(self) -> None:
        self.graph = XNNGraph("0", [], [], 0, [], [], [ConstantDataOffset(0, 0)])
        self.dims: list[list[int]] = []
        self._handle = 0

    def blobs(self) -> Blobs:
        """What the graph becomes in a file."""
        return Blobs(self.graph)

    def input(self, dims: Sequence[int]) -> int:
        """A tensor from outside, float32."""
        return self._float(dims, INPUT)

    def output(self, value: int) -> None:
        """Hand a value out; outputs are numbered in the order of these calls, after the inputs."""
        tensor = self.graph.xvalues[value].xvalue_union
        assert isinstance(tensor, XNNTensorValue)
        tensor.external_id, tensor.flags = self._external(), OUTPUT
        self.graph.output_ids.append(value)

    def linear(
        self, x: int, rows: int, name: str, storage: Storage, *, bias: bool = False, relu: bool = False
    ) -> int:
        """x [..., columns] times a weight [rows, columns] called `name` + ".weight", its scales ".scale".

        A bias, float32 [rows], is called `name` + ".bias.weight".
        """
        dims = self.dims[x]
        columns = dims[-1]
        if storage.bits == 32:
            weight = self._named(f"{name}.weight", 4 * rows * columns)
            plain = self._tensor([rows, columns], XNNDatatype.xnn_datatype_fp32, weight)
            self.graph.xvalues.append(XValue(plain))
            return self._product(x, plain.id_out, rows, 1, name if bias else None, relu)
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
        return self._product(quantized, filter_id, rows, 3, name if bias else None, relu)

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

    def subtract(self, x: int, y: int) -> int:
        out = self._float(self.dims[x])
        self._node(XNNSubtract(x, y, out, 0))
        return out

    def matmul(self, x: int, y: int) -> int:
        """x [B, M, K] times y [B, K, N], both computed."""
        out = self._float([*self.dims[x][:-1], self.dims[y][-1]])
        self._node(XNNBatchMatrixMultiply(x, y, out, 0))
        return out

    def softmax(self, x: int) -> int:
        """Over the last dimension."""
        out = self._float(self.dims[x])
        self._node(XNNSoftmax(x, out, 0))
        return out

    def gelu(self, x: int) -> int:
        """x * Phi(x): the backend (1.5.1) has this form alone, whatever torch's `approximate` says."""
        out = self._float(self.dims[x])
        self._node(XNNGelu(x, out, 0))
        return out

    def gelu_tanh(self, x: int, linear: int, cubic: int) -> int:
        """torch's gelu with approximate="tanh", x / 2 * (1 + tanh(u)), as x * sigmoid(2 u).

        `linear` and `cubic` are inputs [1]: what x and its cube are times in 2 u, see GELU_TANH.
        """
        inner = self.multiply(self.multiply(x, x), cubic)
        inner = self.multiply(self.add(linear, inner), x)
        sigmoid = self._float(self.dims[x])
        self._node(XNNSigmoid(inner, sigmoid, 0))
        return self.multiply(x, sigmoid)

    def convolve(
        self,
        x: int,
        channels: int,
        name: str,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: tuple[int, int, int, int],  # top, right, bottom, left
        depthwise: bool = False,
        relu: bool = False,
    ) -> int:
        """x [1, H, W, C] to [1, H', W', channels], in float32, with a bias.

        The weight is called `name` + ".weight": [channels, height * width * C], or [height * width, channels] of a
        depthwise one; the bias as of `linear`.
        """
        _, height, width, inputs = self.dims[x]
        tall, wide = kernel
        top, right, bottom, left = padding
        shape = [1, tall, wide, channels] if depthwise else [channels, tall, wide, inputs]
        size = 4 * shape[0] * tall * wide * shape[3]
        weight = self._tensor(shape, XNNDatatype.xnn_datatype_fp32, self._named(f"{name}.weight", size))
        self.graph.xvalues.append(XValue(weight))
        bias = self._bias(name, channels)
        rows, columns = (height + top + bottom - tall) // stride + 1, (width + left + right - wide) // stride + 1
        out = self._float([1, rows, columns, channels])
        kind, groups = (XNNDepthwiseConv2d, inputs) if depthwise else (XNNConv2d, 1)
        ins, outs = (1, channels // inputs) if depthwise else (inputs, channels)
        node = kind(
            *padding, tall, wide, stride, stride, 1, 1, ins, outs, groups, 0, 0, x, weight.id_out, bias, out, 0
        )
        self._node(node, limits=RELU if relu else None)
        return out

    def average(self, x: int) -> int:
        """Of pairs both ways: x [1, H, W, C] to [1, H/2, W/2, C]."""
        one, height, width, channels = self.dims[x]
        out = self._float([one, height // 2, width // 2, channels])
        self._node(XNNAvgPooling2d(0, 0, 0, 0, 2, 2, 2, 2, 1, 1, x, out, 0))
        return out

    def silu(self, x: int) -> int:
        """x * sigmoid(x), which upstream's graph has as one node."""
        sigmoid = self._float(self.dims[x])
        self._node(XNNSigmoid(x, sigmoid, 0))
        return self.multiply(x, sigmoid, steps=0)

    def _product(self, x: int, weight: int, rows: int, steps: int, bias: str | None, relu: bool) -> int:
        added = NONE if bias is None else self._bias(bias, rows)
        out = self._float([*self.dims[x][:-1], rows])
        self._node(XNNFullyConnected(x, weight, added, out, 0), steps, RELU if relu else None)
        return out

    def _bias(self, name: str, size: int) -> int:
        bias = self._tensor([size], XNNDatatype.xnn_datatype_fp32, self._named(f"{name}.bias.weight", 4 * size))
        self.graph.xvalues.append(XValue(bias))
        return bias.id_out

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

    def _node(self, node: object, steps: int = 1, limits: OutputMinMax | None = None) -> None:
        self._handle += steps
        self.graph.xnodes.append(XNode(node, self._handle, limits))


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
            stand_ins = [f"{i:02}".rjust(length, "#") for i, length in enumerate(lengths)]  # none within another
            graph, renamed = copy.deepcopy(self.graph), iter(stand_ins)
            for data in graph.constant_data:
                data.named_key = next(renamed) if data.named_key else data.named_key
            self._made[lengths] = serialize_xnnpack_binary(graph, bytearray()), [text.encode() for text in stand_ins]
        blob, found = self._made[lengths]
        for name, stand_in in zip(self.names, found, strict=True):
            assert blob.count(stand_in) == 1, name
            blob = blob.replace(stand_in, keys[name].encode())
        return blob
