"""Traces the whole model once, around calls to the lowered pieces, into an ExecuTorch program without weights.

Weights, norms and the embedding enter as small placeholders and leave as names: the caller learns which constant
buffer of the program stands for which tensor and puts the bytes there itself. Memory: the placeholder weights of one
feed-forward; nothing grows with the vocabulary, and with layers only the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from executorch.exir.schema import Program
from executorch.exir.schema import Tensor as TensorValue
from torch import nn

from checkpoints.config import ModelConfig
from checkpoints.phi3 import Role
from export.models import kv_cache
from export.models.phi3 import QuantizedEmbedding, RMSNorm, Transformer
from export.options import ExportOptions
from export.program.lower import lower_model
from export.quantization.packing import packed_parts
from export.quantization.recipe import Recipe
from export.quantization.rounding import quantize_rows

PLACEHOLDER_ROWS = 2  # of the embedding: the graph never looks at how many rows there are


@dataclass(frozen=True)
class Graph:
    """A program whose constant buffers are still placeholders."""

    program: Program
    constants: dict[str, int]  # data name -> index in program.constant_buffer
    planned_bytes: list[int]  # sizes of the memory arenas planned for `forward`


def metadata(config: ModelConfig, options: ExportOptions) -> dict[str, int | bool | list[int]]:
    """Constant methods that ExecuTorch's runners read (`extension/llm/runner` in 1.5.1)."""
    assert options.bos_id is not None
    return {
        "get_bos_id": options.bos_id,
        "get_eos_ids": list(options.eos_ids),
        "get_max_seq_len": options.prefill_chunk,
        "get_max_context_len": options.context,
        "get_vocab_size": config.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def _placeholders(model: Any, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Give the embedding and the norms small or constant stand-ins, each unlike the others; data name -> stand-in."""
    hidden = model.config.hidden_size
    found: dict[str, torch.Tensor] = {}
    rows = torch.full((PLACEHOLDER_ROWS, hidden), -1.0)
    config = recipe.torchao_config(Role.EMBEDDING)
    if config is None:
        model.tok_embeddings = nn.Embedding(PLACEHOLDER_ROWS, hidden, _weight=rows)
        model.tok_embeddings.weight.requires_grad_(False)
        found["tok_embeddings.weight"] = rows
    else:
        parts = {part.suffix: part.data.contiguous() for part in packed_parts(quantize_rows(rows, config))}
        model.tok_embeddings = QuantizedEmbedding(parts["weight"], parts["scale"])
        found |= {f"tok_embeddings.{suffix}": data for suffix, data in parts.items()}
    for number, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, RMSNorm):
            module.weight = nn.Parameter(torch.full((hidden,), float(number)), requires_grad=False)
            found[f"{name}.weight"] = module.weight.detach()
    return found


def build_graph(
    config: ModelConfig, options: ExportOptions, progress: Callable[[str], object] = lambda step: None
) -> Graph:
    """Trace, lower, plan memory and emit. The program's delegates refer to weights by name."""
    chunk, cache_dtype = options.prefill_chunk, kv_cache.DTYPES[options.kv_cache]
    with torch.device("meta"):
        model = Transformer(config, options.context, cache_dtype, options.full_logits)
    placeholders = _placeholders(model, options.recipe)
    progress("lower")
    lower_model(model, chunk, options.recipe)
    progress("trace")
    example = (torch.zeros(1, min(3, chunk), dtype=torch.long), torch.zeros(1, dtype=torch.long))
    length = torch.export.Dim("length", min=1, max=chunk)
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=({1: length}, None), strict=False)
        progress("edge passes")
        edge = to_edge(
            program,
            constant_methods=metadata(config, options),
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
    _set_embedding_rows(result, constants, config.vocab_size)
    plan = next(plan for plan in result.execution_plan if plan.name == "forward")
    return Graph(result, constants, [int(size) for size in plan.non_const_buffer_sizes])


def _find(program: Program, placeholders: dict[str, torch.Tensor]) -> dict[str, int]:
    """Which constant buffer holds which placeholder, by its bytes."""
    held = {bytes(buffer.storage): index for index, buffer in enumerate(program.constant_buffer)}
    return {name: held[data.contiguous().view(torch.uint8).numpy().tobytes()] for name, data in placeholders.items()}


def _set_embedding_rows(program: Program, constants: dict[str, int], rows: int) -> None:
    """Give the embedding's tensors their true number of rows."""
    wanted = {index for name, index in constants.items() if name.startswith("tok_embeddings.")}
    for plan in program.execution_plan:
        for value in plan.values:
            if isinstance(value.val, TensorValue) and value.val.data_buffer_idx in wanted:
                assert value.val.sizes[0] == PLACEHOLDER_ROWS
                value.val.sizes = [rows, *value.val.sizes[1:]]
