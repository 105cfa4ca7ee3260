"""export.program.deepen: a program made deep is the one that upstream emits of the deep model, as a whole."""

import copy
import dataclasses

import pytest
from executorch.exir.schema import DelegateCall, KernelCall, Tensor

from checkpoints.config import ModelConfig, read_config
from checkpoints.source import resolve
from export.models.registry import family_of
from export.options import ExportOptions
from export.program.deepen import SHALLOW, Unknown, deepen
from export.program.trace import build_graph, emit, methods
from export.quantization.recipe import Recipe

CONFIG = read_config(resolve("phi4-tiny").folder)
ALIKE = {"num_attention_heads": 3, "num_key_value_heads": 3}  # every head its own keys
OPTIONS = [
    (4, {}, ExportOptions(context=64, prefill_chunk=16, bos_id=1, eos_ids=(2, 3), speculate=0)),
    (11, {}, ExportOptions(context=64, prefill_chunk=16, kv_cache="fp32", bos_id=1, eos_ids=(2,))),
    (6, ALIKE, ExportOptions(context=300, prefill_chunk=9, full_logits=True, recipe=Recipe(False), bos_id=1)),
    (5, {}, ExportOptions(context=64, prefill_chunk=2, recipe=Recipe(embedding_bits=4, head_bits=8), bos_id=1)),
    (7, {}, ExportOptions(context=64, prefill_chunk=2, recipe=Recipe(int8=("3", "5.mlp.down_proj")), bos_id=1)),
]


def emitted(config: ModelConfig, options: ExportOptions, layers: int):  # type: ignore[no-untyped-def]
    pieces = family_of(config).pieces(config, options.recipe, options.prefill_chunk, options.logits)
    [forward] = methods(config, options, pieces)
    return emit(forward, layers, config, options, lambda step: None)


@pytest.mark.parametrize(("layers", "shape", "options"), OPTIONS)
def test_deepened_as_emitted(layers: int, shape: dict[str, int], options: ExportOptions) -> None:
    config = dataclasses.replace(CONFIG, num_hidden_layers=layers, **shape)
    direct, constants = emitted(config, options, layers)
    shallow, few = emitted(config, options, SHALLOW)
    assert deepen(shallow, few, layers) == constants
    built = build_graph(config, options)
    assert built.constants == constants
    for program in (direct, shallow, built.program):  # what stands in for norms and embedding differs
        for index in constants.values():
            program.constant_buffer[index].storage = b""
    assert shallow == direct == built.program


def test_layers_that_differ_are_not_repeated() -> None:
    program, constants = emitted(CONFIG, OPTIONS[0][2], SHALLOW)
    plan = next(plan for plan in program.execution_plan if plan.name == "forward")

    def turn(plan) -> None:  # type: ignore[no-untyped-def]  another order of dimensions in the last layer
        calls = [one.instr_args for one in plan.chains[0].instructions if isinstance(one.instr_args, DelegateCall)]
        tensor = plan.values[calls[-3].args[0]].val
        assert isinstance(tensor, Tensor)
        tensor.dim_order = [*reversed(tensor.dim_order)]

    def swap(plan) -> None:  # type: ignore[no-untyped-def]  another operator in the second layer
        calls = [one.instr_args for one in plan.chains[0].instructions if isinstance(one.instr_args, KernelCall)]
        middle = calls[len(calls) // 2]
        middle.op_index = (middle.op_index + 1) % len(plan.operators)

    def replan(plan) -> None:  # type: ignore[no-untyped-def]
        plan.non_const_buffer_sizes[-1] += 16

    for change in (turn, swap, replan):
        damaged = copy.deepcopy(program)
        change(damaged.execution_plan[program.execution_plan.index(plan)])
        before = copy.deepcopy(damaged)
        with pytest.raises(Unknown):
            deepen(damaged, constants, 8)
        assert damaged == before
