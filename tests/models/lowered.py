"""The pieces of the decoder as upstream's partitioner lowers them: the reference for `export.models.phi3.pieces`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNGraph
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch import Tensor, nn
from torchao.quantization import quantize_

from checkpoints.config import ModelConfig
from export.models.phi3.decoder import Transformer
from export.options import ExportOptions

MIN_LENGTH = 3  # tokens in an example input: torch.export specializes on 0, 1 and, in views, on equal sizes


class _Piece(nn.Module):
    """One method of a module as a forward of its own."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, *args: Tensor) -> Any:
        return getattr(self.owner, self.method)(*args)


@contextmanager
def _captured_graphs() -> Iterator[list[XNNGraph]]:
    """Collect the XNNGraph of every delegate lowered inside: upstream only hands out its serialized form."""
    graphs: list[XNNGraph] = []

    def capture(graph: XNNGraph, constants: bytearray) -> bytes:
        graphs.append(graph)
        return serialize_xnnpack_binary(graph, constants)

    with mock.patch.object(xnnpack_preprocess, "serialize_xnnpack_binary", capture):
        yield graphs


def _lower(
    owner: nn.Module,
    method: str,
    examples: tuple[Tensor, ...],
    dynamic: tuple[dict[int, Any], ...],
    weights: dict[str, str],
    options: ExportOptions,
) -> XNNGraph:
    """`owner.method(*examples)` as one delegate, its linears called as `weights` has them and not by their hashes.

    `weights` has the Hugging Face name of each, which a recipe goes by.
    """
    for number, (linear, name) in enumerate(weights.items(), 1):
        module = getattr(owner, linear)
        weight = torch.zeros(module.weight.shape)
        weight[0, :number] = 1  # each unlike the others
        module.weight = nn.Parameter(weight, requires_grad=False)
        if (config := options.recipe.torchao_config(name)) is not None:
            quantize_(module, config, filter_fn=lambda found, _, module=module: found is module)
            module.weight.scale[-1, -1] = number
    program = torch.export.export(_Piece(owner, method), examples, dynamic_shapes=(dynamic,), strict=False)
    with _captured_graphs() as graphs:
        to_edge_transform_and_lower(
            program.run_decompositions({}),
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
    (graph,) = graphs
    names = iter(f"{linear}.{part}" for linear in weights for part in ("weight", "scale"))
    if options.recipe.quantized is False:
        names = iter(f"{linear}.weight" for linear in weights)
    for data in graph.constant_data:
        data.named_key = next(names) if data.named_key else data.named_key
    return graph


def lower_pieces(config: ModelConfig, options: ExportOptions) -> dict[str, XNNGraph]:
    """project, finish, feed and head."""
    layer, chunk = dataclasses.replace(config, num_hidden_layers=1), options.prefill_chunk
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    probe = Transformer(layer, MIN_LENGTH, logits=options.logits)
    block: Any = probe.layers[0]
    length = {1: torch.export.Dim("length", min=1, max=chunk)}
    h = torch.zeros(1, min(MIN_LENGTH, chunk), config.hidden_size)
    attended = torch.zeros(kv, h.shape[1], heads // kv, config.head_dim)
    last, last_length = h[:, -1], {}
    if options.logits != 1:
        last, last_length = h, {1: torch.export.Dim("rows", min=1, max=options.logits or chunk)}
    prefix, two = "model.layers.0.", (length, length)
    qkv = dict.fromkeys(("wq", "wk", "wv"), f"{prefix}self_attn.qkv_proj.weight")
    feed = dict.fromkeys(("w1", "w3"), f"{prefix}mlp.gate_up_proj.weight") | {"w2": f"{prefix}mlp.down_proj.weight"}
    wo = {"wo": f"{prefix}self_attn.o_proj.weight"}
    return {
        "project": _lower(block.attention, "project", (h,), (length,), qkv, options),
        "finish": _lower(block.attention, "finish", (attended, h), two, wo, options),
        "feed": _lower(block.feed_forward, "project", (h, h.clone()), two, feed, options),
        "head": _lower(probe, "head", (last,), (last_length,), {"output": "lm_head.weight"}, options),
    }
