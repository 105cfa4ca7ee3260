"""Lowers each distinct piece of the model to XNNPACK once, and stamps out a renamed copy for every layer.

Lowering costs seconds of Python passes and is the same work for every layer, so it is done with placeholder weights
on one layer's pieces. The result, XNNPACK's own graph, is then copied with other weight names. Its weights are only
referred to by name (`named_key`); the bytes are written elsewhere. Upstream's unstable corners of the XNNPACK backend
are touched here and nowhere else.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNGraph, XNNQuantizedTensorValue
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.lowered_backend_module import LoweredBackendModule as UpstreamLoweredModule
from torch import Tensor, nn
from torch._higher_order_ops.executorch_call_delegate import executorch_call_delegate

from checkpoints.config import ModelConfig
from checkpoints.phi3 import Role
from export.models.phi3 import Transformer
from export.quantization.packing import packed_parts, sha256_key
from export.quantization.recipe import Recipe
from export.quantization.rounding import quantize_rows

EDGE = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
# Rows of the head's placeholder. lm_head is the one weight too large to lower whole in 4 GiB (200064 x 3072); a
# linear's rows are independent, so a few stand for all and the sizes are set afterwards.
HEAD_ROWS = 61
MIN_LENGTH = 3  # tokens in an example input: torch.export specializes on 0, 1 and, in views, on equal sizes


@dataclass(frozen=True)
class Template:
    """One lowered piece: XNNPACK's graph with placeholder keys, and which weight each key stands for."""

    graph: XNNGraph
    keys: dict[str, str]  # placeholder key -> data name with "{}" for the layer's prefix
    shapes: Callable[..., tuple[Tensor, ...]]  # the method's results as empty tensors, from its arguments
    arguments: tuple[int, ...]  # argument of the method that is the delegate's i-th input
    results: tuple[int, ...]  # output of the delegate that is the method's i-th result


class _Piece(nn.Module):
    """One method of a module as a forward of its own."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, *args: Tensor) -> Any:
        return getattr(self.owner, self.method)(*args)


class LoweredBackendModule(UpstreamLoweredModule):
    """A delegate whose original program stands only for the shapes of its outputs.

    The tracer and the emitter recognise lowered modules by this very class name (torch 2.13
    `is_lowered_module`). Copies are not needed, as nothing changes a lowered module after it was made.
    """

    def __init__(self, blob: bytes, outputs: Callable[..., tuple[Tensor, ...]]) -> None:
        program = SimpleNamespace(
            module=lambda: outputs, graph_module=nn.Module(), graph=torch.fx.Graph(), graph_signature=None
        )
        program.graph.output(())
        super().__init__(program, "XnnpackBackend", blob, [], None)

    def __deepcopy__(self, memo: Any) -> LoweredBackendModule:
        return self


def _placeholder(rows: int, columns: int, role: Role, recipe: Recipe, number: int) -> Tensor:
    """A weight of the right shape and quantization, unlike every other placeholder of its piece."""
    config = recipe.torchao_config(role)
    weight = torch.zeros(rows, columns)
    weight[0, :number] = 1
    if config is None:
        return weight
    quantized: Any = quantize_rows(weight, config)
    quantized.scale[-1, -1] = number
    return quantized


@contextmanager
def _captured_graphs() -> Iterator[list[XNNGraph]]:
    """Collect the XNNGraph of every delegate lowered inside: upstream only hands out its serialized form."""
    graphs: list[XNNGraph] = []

    def capture(graph: XNNGraph, constants: bytearray) -> bytes:
        graphs.append(graph)
        return serialize_xnnpack_binary(graph, constants)

    with mock.patch.object(xnnpack_preprocess, "serialize_xnnpack_binary", capture):
        yield graphs


def lower_piece(
    owner: nn.Module,
    method: str,
    examples: tuple[Tensor, ...],
    dynamic: tuple[dict[int, Any], ...],
    weights: dict[str, Role],
    shapes: Callable[..., tuple[Tensor, ...]],
    recipe: Recipe,
) -> Template:
    """Lower `owner.method(*examples)` whole into one XNNPACK delegate.

    `weights` names the linears of `owner` used by the method (their attribute names) with the role that decides their
    quantization; `dynamic` has the dynamic dimensions of each example.
    """
    keys = {}
    for number, (linear, role) in enumerate(weights.items(), 1):
        rows, columns = getattr(owner, linear).weight.shape
        weight = _placeholder(rows, columns, role, recipe, number)
        setattr(owner, linear, nn.Linear(columns, rows, bias=False, device="meta"))
        getattr(owner, linear).weight = nn.Parameter(weight, requires_grad=False)
        for part in packed_parts(weight):
            assert sha256_key(part) not in keys, "placeholders must differ"
            keys[sha256_key(part)] = f"{{}}{linear}.{part.suffix}"
    program = torch.export.export(_Piece(owner, method), examples, dynamic_shapes=(dynamic,), strict=False)
    with _captured_graphs() as graphs:
        edge = to_edge_transform_and_lower(
            program.run_decompositions({}), partitioner=[XnnpackPartitioner()], compile_config=EDGE
        )
    if len(graphs) != 1:
        raise RuntimeError(f"XNNPACK took {method} in {len(graphs)} delegates, not in one")
    used = {data.named_key for data in graphs[0].constant_data if data.named_key}
    if used != set(keys):
        raise RuntimeError(f"XNNPACK packed the weights of {method} in a way this version does not know")
    return Template(graphs[0], keys, shapes, *_order(edge.exported_program()))


def _order(program: torch.export.ExportedProgram) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The partitioner may change the order of inputs and outputs: `Template.arguments` and `.results` as lowered."""
    nodes = program.graph.nodes
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    inputs = [name for name in inputs if name in program.graph_signature.user_inputs]
    call = next(node for node in nodes if node.target is executorch_call_delegate)
    # an output is operator.getitem(call, index)
    results = [item.args[1] for item in program.graph.output_node().args[0]]
    return tuple(inputs.index(node.name) for node in call.args[1:]), tuple(results)


def stamp(template: Template, prefix: str, head_rows: int | None = None) -> _Call:
    """A call to a copy of a lowered piece, its weights called `prefix` + name; `head_rows`: the head's true rows."""
    graph = copy.deepcopy(template.graph)
    for data in graph.constant_data:
        if data.named_key:
            data.named_key = template.keys[data.named_key].format(prefix)
    if head_rows is not None:
        _set_rows(graph, head_rows)
    blob = serialize_xnnpack_binary(graph, bytearray())

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        arguments = [inputs[template.arguments.index(i)] for i in range(len(inputs))]
        results = template.shapes(*arguments)
        if head_rows is not None:
            results = tuple(result.new_empty(*result.shape[:-1], head_rows) for result in results)
        return tuple(results[template.results.index(i)] for i in range(len(results)))

    return _Call(LoweredBackendModule(blob, outputs), template)


def _set_rows(graph: XNNGraph, rows: int) -> None:
    """Change HEAD_ROWS to `rows` in every shape, scale count and data size of a graph with one linear."""
    for value in graph.xvalues:
        union = value.xvalue_union
        tensor = union.tensor_value if isinstance(union, XNNQuantizedTensorValue) else union
        assert tensor.dims.count(HEAD_ROWS) <= 1
        tensor.dims = [rows if dim == HEAD_ROWS else dim for dim in tensor.dims]
        if isinstance(union, XNNQuantizedTensorValue) and hasattr(union.quant_params, "num_scales"):
            union.quant_params.num_scales = union.quant_params.num_scales // HEAD_ROWS * rows
    for data in graph.constant_data:
        assert data.size % HEAD_ROWS == 0
        data.size = data.size // HEAD_ROWS * rows


class _Call:
    """Stands in for a method of the model and calls the delegate when traced."""

    def __init__(self, lowered: LoweredBackendModule, template: Template) -> None:
        self.lowered, self.template = lowered, template

    def __call__(self, *args: Tensor) -> Any:
        outputs = executorch_call_delegate(self.lowered, *(args[i] for i in self.template.arguments))
        results = tuple(outputs[i] for i in self.template.results)
        return results[0] if len(results) == 1 else results


def lower_model(model: Transformer, chunk: int, recipe: Recipe) -> None:
    """Replace every linear of `model` (which may be on the meta device) by calls to lowered pieces, in place.

    Pieces of a layer: wq, wk, wv (one input, quantized once a token), wo with its residual, and the whole
    feed-forward with its residual. Memory: the placeholder weights of one feed-forward, a few copies.
    """
    layer = dataclasses.replace(model.config, num_hidden_layers=1, vocab_size=HEAD_ROWS)
    pieces = _lower_pieces(layer, chunk, recipe, model.full_logits)
    block: Any
    for i, block in enumerate(model.layers):
        attention, feed_forward = block.attention, block.feed_forward
        attention.project = stamp(pieces["project"], f"layers.{i}.attention.")
        attention.finish = stamp(pieces["finish"], f"layers.{i}.attention.")
        feed_forward.project = stamp(pieces["feed"], f"layers.{i}.feed_forward.")
        del attention.wq, attention.wk, attention.wv, attention.wo
        del feed_forward.w1, feed_forward.w2, feed_forward.w3
    setattr(model, "head", stamp(pieces["head"], "", model.config.vocab_size))  # noqa: B010  a method, for mypy
    del model.output


# Programs that export several files, and tests, lower the same shapes again and again.
@lru_cache(maxsize=8)
def _lower_pieces(config: ModelConfig, chunk: int, recipe: Recipe, full_logits: bool) -> dict[str, Template]:
    """The four distinct pieces of a model whose `vocab_size` is HEAD_ROWS."""
    hidden, size = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    assert HEAD_ROWS not in (hidden, chunk)
    probe = Transformer(config, MIN_LENGTH, full_logits=full_logits)
    block: Any = probe.layers[0]
    length = {1: torch.export.Dim("length", min=1, max=chunk)}
    h = torch.zeros(1, min(MIN_LENGTH, chunk), hidden)
    attended = torch.zeros(kv, h.shape[1], heads // kv, size)

    def project(x: Tensor) -> tuple[Tensor, ...]:
        return x.new_empty(kv, x.shape[1], heads // kv + 1, size), x.new_empty(kv, x.shape[1], 1, size)

    def like_residual(x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(residual),)

    def logits(x: Tensor) -> tuple[Tensor, ...]:
        return (x.new_empty(*x.shape[:-1], HEAD_ROWS),)

    last, last_length = (h, length) if full_logits else (h[:, -1], {})
    return {
        "project": lower_piece(
            block.attention, "project", (h,), (length,),
            dict.fromkeys(("wq", "wk", "wv"), Role.LINEAR), project, recipe,
        ),
        "finish": lower_piece(
            block.attention, "finish", (attended, h), (length, length), {"wo": Role.LINEAR}, like_residual, recipe
        ),
        "feed": lower_piece(
            block.feed_forward, "project", (h, h.clone()), (length, length),
            dict.fromkeys(("w1", "w2", "w3"), Role.LINEAR), like_residual, recipe,
        ),
        "head": lower_piece(probe, "head", (last,), (last_length,), {"output": Role.HEAD}, logits, recipe),
    }  # fmt: skip
