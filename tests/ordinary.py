"""The ordinary way to a `.pte`: weights in the model, one export, upstream's partitioner over the whole graph.

The reference for `export.pte`: slow and large, and for that reason only used on small models.
"""

from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torchao.quantization import quantize_

from checkpoints.config import ModelConfig
from checkpoints.untied import Untied
from export.models.kv_cache import CACHE_DTYPES
from export.models.phi3.decoder import Transformer
from export.models.phi3.layout import layout
from export.quantization.recipe import Recipe


def eager_model(untied: Untied, recipe: Recipe, context: int, kv_cache: str, logits: int | None = 1) -> Transformer:
    """Our graph with float weights, quantized by torchao in place, all at once."""
    config: ModelConfig = untied.config
    model = Transformer(config, context, CACHE_DTYPES[kv_cache], logits)
    rows = layout(config).items()
    weights = {name: untied.tensor(r.name)[r.start : r.stop].float() for name, r in rows}
    model.load_state_dict(weights, strict=True)
    modules = dict(model.named_modules())
    for name, r in rows:
        module, torchao_config = modules[name.removesuffix(".weight")], recipe.torchao_config(r.name)
        if torchao_config is not None:
            quantize_(module, torchao_config, filter_fn=lambda m, _, module=module: m is module)
    return model


def lower_ordinarily(
    untied: Untied, recipe: Recipe, out: Path, *, context: int, chunk: int, kv_cache: str, logits: int | None = 1
) -> None:
    """Write a `.pte` of the model lowered whole."""
    model = eager_model(untied, recipe, context, kv_cache, logits)
    example = (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    length = torch.export.Dim("length", min=1, max=chunk)
    program = torch.export.export(model, example, dynamic_shapes=({1: length}, None), strict=False)
    edge = to_edge_transform_and_lower(
        program.run_decompositions({}),
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    lowered = edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            do_quant_fusion_and_const_prop=True,
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        )
    )
    with out.open("wb") as file:
        lowered.write_to_file(file)
