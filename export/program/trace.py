"""Traces the model, around calls to the pieces that XNNPACK computes, into an ExecuTorch program without weights.

Weights, norms and the embedding enter as small placeholders and leave as names: the caller learns which constant
buffer of the program stands for which tensor and puts the bytes there itself. A delegate's data is a token that says
which piece of which layer it is; its blob is made when the names of its weights are known. Memory: a few layers of
graph, whatever the model's size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.lowered_backend_module import LoweredBackendModule as UpstreamLoweredModule
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from executorch.exir.schema import Program
from executorch.exir.schema import Tensor as TensorValue
from torch import Tensor, nn
from torch._higher_order_ops.executorch_call_delegate import executorch_call_delegate

from checkpoints.config import ModelConfig
from checkpoints.roles import EMBEDDING
from export.models import kv_cache
from export.models.family import Method, Piece, Sizes
from export.models.modules import LayerNorm, QuantizedEmbedding, RMSNorm, Table, Vector
from export.models.phi4mm.settings import media_facts
from export.models.registry import family_of
from export.options import ExportOptions
from export.program.deepen import SHALLOW, Unknown, deepen
from export.program.merge import copied, merge
from export.quantization.packing import pack
from export.quantization.rounding import round_rows

PLACEHOLDER_ROWS = 2  # of the embedding: the graph never looks at how many rows there are
TOKEN = re.compile(r"(\w+) ([\w.]*)")  # a piece and the prefix of its weights' names


@dataclass(frozen=True)
class Graph:
    """A program whose constant buffers and delegates are still placeholders."""

    program: Program
    constants: dict[str, int]  # name of a part -> index in program.constant_buffer
    pieces: dict[str, Piece]

    @property
    def planned_bytes(self) -> int:
        """Of the memory arenas of `forward`."""
        plan = next(plan for plan in self.program.execution_plan if plan.name == "forward")
        return sum(int(size) for size in plan.non_const_buffer_sizes)

    def blob(self, token: bytes, keys: Mapping[str, str]) -> bytes:
        """A delegate's blob; `keys` are the data names of parts, such as "layers.0.attention.wq.weight"."""
        match = TOKEN.fullmatch(token.decode())
        assert match is not None
        blobs = self.pieces[match[1]].blobs(match[2])
        return blobs.make({name: keys[match[2] + name] for name in blobs.names})


def build_graph(
    config: ModelConfig, options: ExportOptions, progress: Callable[[str], object] = lambda step: None
) -> Graph:
    """Trace each method, plan memory and emit; deep ones are emitted shallow and made deep where layers repeat."""
    pieces = family_of(config).pieces(config, options.recipe, options.prefill_chunk, options.logits)
    traced = methods(config, options, pieces)
    programs = []
    for method in traced:

        def tell(step: str, name: str = method.name) -> None:
            progress(step if len(traced) == 1 else f"{name}: {step}")

        program, constants = _deep(method, config, options, tell)
        programs += [(program, constants)]
        if method.copies:
            programs += copied(program, constants, method)
    program, constants = merge(programs)
    return Graph(program, constants, pieces)


def methods(config: ModelConfig, options: ExportOptions, pieces: dict[str, Piece]) -> list[Method]:
    """What is traced of a model."""
    cache_dtype = kv_cache.CACHE_DTYPES[options.kv_cache]
    sizes = Sizes(options.context, options.prefill_chunk, options.logits, cache_dtype)
    return family_of(config).methods(config, sizes, _calls(pieces))


def _deep(
    method: Method, config: ModelConfig, options: ExportOptions, progress: Callable[[str], object]
) -> tuple[Program, dict[str, int]]:
    if method.layers > SHALLOW:
        program, constants = emit(method, SHALLOW, config, options, progress)
        try:
            return program, deepen(program, constants, method.layers)
        except Unknown:
            pass  # another version of ExecuTorch, or a model whose layers differ: the long way
    return emit(method, method.layers, config, options, progress)


def emit(
    method: Method, layers: int, config: ModelConfig, options: ExportOptions, progress: Callable[[str], object]
) -> tuple[Program, dict[str, int]]:
    """A method of so many layers by upstream's own way; its program, and the named constant buffers."""
    with torch.device("meta"):
        model = method.module(layers)
    placeholders, tables = _placeholders(model, method.prefix, config, options)
    progress("trace")
    with torch.no_grad():
        program = torch.export.export(model, method.example, dynamic_shapes=method.dynamic, strict=False)
        progress("edge passes")
        edge = to_edge(
            {method.name: program},
            constant_methods=metadata(config, options) if method.name == "forward" else None,
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        progress("plan and emit")
        emitted = edge.to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            )
        )
    result = emitted.executorch_program
    constants = _find(result, placeholders)
    _set_rows(result, {constants[name]: rows for name, rows in tables.items()})
    return result, constants


def metadata(config: ModelConfig, options: ExportOptions) -> dict[str, Any]:
    """Constant methods that ExecuTorch's runners read (`extension/llm/runner` in 1.5.1), and ours for media."""
    assert options.bos_id is not None
    return media_facts(config.multimodal, options.max_crops).constants() | {
        "get_bos_id": options.bos_id,
        "get_eos_ids": list(options.eos_ids),
        "get_max_seq_len": options.prefill_chunk,
        "get_max_context_len": options.context,
        "get_vocab_size": config.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def _placeholders(
    model: Any, prefix: str, config: ModelConfig, options: ExportOptions
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Give norms, tables and the embedding stand-ins, each unlike the others.

    Returns each part's name -> its stand-in, and the names of those with fewer rows than they have -> how many.
    """
    found: dict[str, Tensor] = {}
    tables: dict[str, int] = {}
    if hasattr(model, "tok_embeddings"):
        parts = _embedding(model, config.hidden_size, options)
        found |= {f"tok_embeddings.{part}": data.contiguous() for part, data in parts.items()}
        tables = dict.fromkeys(found, config.vocab_size)
    for number, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, (RMSNorm, LayerNorm, Table, Vector)):
            continue
        called = f"{prefix}{name}.weight"
        shape = list(module.weight.shape)
        if isinstance(module, Table):
            shape[0], tables[called] = PLACEHOLDER_ROWS, module.rows
        module.weight = nn.Parameter(torch.full(shape, float(number)), requires_grad=False)
        found[called] = module.weight.detach()
        if isinstance(module, LayerNorm):
            module.bias = nn.Parameter(torch.full(shape, number + 0.5), requires_grad=False)
            found[f"{prefix}{name}.bias.weight"] = module.bias.detach()
    return found, tables


def _embedding(model: Any, hidden: int, options: ExportOptions) -> dict[str, Tensor]:
    """Make the table of tokens one of few rows, stored as the recipe says; its parts."""
    rows = torch.full((PLACEHOLDER_ROWS, hidden), -1.0)
    storage = options.recipe.storage(EMBEDDING, hidden)
    parts = pack(rows if storage.bits == 32 else round_rows(rows, storage))
    if storage.bits == 32:
        model.tok_embeddings = nn.Embedding(PLACEHOLDER_ROWS, hidden, _weight=rows)
        model.tok_embeddings.weight.requires_grad_(False)
    else:
        scale = parts["scale"].flatten() if storage.bits == 8 else parts["scale"]
        model.tok_embeddings = QuantizedEmbedding(parts["weight"], scale)
    return parts


class LoweredBackendModule(UpstreamLoweredModule):
    """A delegate whose original program stands only for the shapes of its outputs.

    The tracer and the emitter recognise lowered modules by this very class name (torch 2.13
    `is_lowered_module`). Copies are not needed, as nothing changes a lowered module after it was made.
    """

    def __init__(self, token: bytes, outputs: Callable[..., tuple[Tensor, ...]]) -> None:
        program = SimpleNamespace(
            module=lambda: outputs, graph_module=nn.Module(), graph=torch.fx.Graph(), graph_signature=None
        )
        program.graph.output(())
        super().__init__(program, "XnnpackBackend", token, [], None)

    def __deepcopy__(self, memo: Any) -> LoweredBackendModule:
        return self


def _calls(pieces: dict[str, Piece]) -> Callable[[str, str], Callable[..., Any]]:
    """Makes stand-ins for methods of the decoder, which call a delegate when traced."""

    def call(name: str, prefix: str) -> Callable[..., Any]:
        lowered = LoweredBackendModule(f"{name} {prefix}".encode(), pieces[name].outputs)

        def method(*args: Tensor) -> Any:
            outputs = executorch_call_delegate(lowered, *args)
            return outputs[0] if len(outputs) == 1 else outputs

        return method

    return call


def _find(program: Program, placeholders: dict[str, Tensor]) -> dict[str, int]:
    """Which constant buffer holds which placeholder, by its bytes."""
    held = {bytes(buffer.storage): index for index, buffer in enumerate(program.constant_buffer)}
    return {name: held[data.contiguous().view(torch.uint8).numpy().tobytes()] for name, data in placeholders.items()}


def _set_rows(program: Program, wanted: Mapping[int, int]) -> None:
    """Give tables their true number of rows, by the constant buffers that hold them."""
    for plan in program.execution_plan:
        for value in plan.values:
            if isinstance(value.val, TensorValue) and value.val.data_buffer_idx in wanted:
                assert value.val.sizes[0] == PLACEHOLDER_ROWS
                value.val.sizes = [wanted[value.val.data_buffer_idx], *value.val.sizes[1:]]
