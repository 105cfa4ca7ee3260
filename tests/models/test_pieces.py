"""export.models.phi3.pieces: XNNPACK's graphs as drawn are those that upstream lowers, in every field."""

import dataclasses

import pytest
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary

from checkpoints.config import ModelConfig, read_config
from checkpoints.source import resolve
from export.models.family import Piece
from export.models.registry import family_of, source_name
from export.options import ExportOptions
from export.quantization.recipe import Recipe
from export.xnnpack.reader import read_xnngraph
from tests.models.lowered import lower_pieces

CONFIG = read_config(resolve("phi4-tiny").folder)
SHAPES = {
    "phi4-tiny": {},
    "every head its own keys": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "two heads a key": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 320},
}
PREFIXES = {
    "project": "layers.0.attention.",
    "finish": "layers.0.attention.",
    "feed": "layers.0.feed_forward.",
    "head": "",
}
OPTIONS = {
    "default": ExportOptions(),
    "all logits, int8 head": ExportOptions(prefill_chunk=7, full_logits=True, recipe=Recipe(head_bits=8)),
    "logits of the last": ExportOptions(speculate=0),
    "float32": ExportOptions(recipe=Recipe(quantized=False)),
    "groups of 64": ExportOptions(prefill_chunk=2, recipe=Recipe(group_size=64)),
    "int8 qkv and down": ExportOptions(recipe=Recipe(int8=("qkv_proj", "0.mlp.down_proj"))),
    "int8 layer": ExportOptions(prefill_chunk=7, recipe=Recipe(int8=("0",))),
}


def pieces(config: ModelConfig, options: ExportOptions) -> dict[str, Piece]:
    return family_of(config).pieces(config, options.recipe, options.prefill_chunk, options.logits)


@pytest.mark.parametrize(
    ("shape", "options"),
    [("phi4-tiny", name) for name in OPTIONS] + [(name, "default") for name in SHAPES if name != "phi4-tiny"],
)
def test_drawn_as_lowered(shape: str, options: str) -> None:
    config = dataclasses.replace(CONFIG, vocab_size=512, **SHAPES[shape])
    lowered, drawn = lower_pieces(config, OPTIONS[options]), pieces(config, OPTIONS[options])
    assert lowered.keys() == drawn.keys()
    for name, graph in lowered.items():
        assert drawn[name].blobs(PREFIXES[name]).graph == graph, name


def test_renamed_blobs_are_those_of_renamed_graphs() -> None:
    blobs = pieces(CONFIG, ExportOptions())["project"].blobs(PREFIXES["project"])
    for prefix in ("layers.3.attention.", "layers.4.attention.", "layers.31.attention."):
        keys = {name: f"{prefix}{name}.{number:032x}" for number, name in enumerate(blobs.names)}
        made = blobs.make(keys)
        graph = dataclasses.replace(
            blobs.graph,
            constant_data=[
                dataclasses.replace(data, named_key=keys.get(data.named_key, data.named_key))
                for data in blobs.graph.constant_data
            ],
        )
        assert made == serialize_xnnpack_binary(graph, bytearray())
        names = [linear.filter.constant.name for linear in read_xnngraph(memoryview(made)).linears]
        assert names == [keys[f"{name}.weight"] for name in ("wq", "wk", "wv")]


def test_layers_stored_alike_share_a_graph() -> None:
    feed = pieces(CONFIG, ExportOptions(recipe=Recipe(int8=("1.mlp", "3.mlp"))))["feed"]
    plain, eight, other, same = (feed.blobs(f"layers.{i}.feed_forward.") for i in range(4))
    assert plain is other and eight is same and plain.graph != eight.graph


def test_a_module_is_of_the_weight_it_is_laid_out_from() -> None:
    for name, rows in family_of(CONFIG).layout(CONFIG).items():
        wanted = rows.name if name.startswith("layers.") else None
        assert source_name(name.removesuffix(".weight")) == wanted
