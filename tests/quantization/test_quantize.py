"""Streamed quantization is torchao's of the whole model, bit for bit; untying changes nothing but names."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
    quantize_,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.families import tensor_shapes
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.synthesize import synthesize
from checkpoints.untied import Untied
from checkpoints.weights import INDEX, open_checkpoint
from export import untie as untie_module
from export.quantization.recipe import Recipe, make_recipe
from export.quantization.rounding import Quantizing, Rounded, round_rows
from export.quantize import quantize
from export.untie import untie

RECIPES = [
    Recipe(),
    Recipe(group_size=64),
    Recipe(group_size=128, embedding_bits=4),
    Recipe(embedding_bits=4),
    Recipe(head_bits=8),
    Recipe(int8=("0.mlp.down_proj", "1.self_attn"), group_size=64),
]
DOWN = "model.layers.0.mlp.down_proj.weight"
EIGHT = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.o_proj")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of 128 fit all its rows; two shards; embedding and lm_head are one weight."""
    out = tmp_path_factory.mktemp("tied") / "checkpoint"
    return synthesize(out, layers=2, hidden=128, intermediate=256, heads=4, kv_heads=2, vocab=512, max_shard_gb=5e-4)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def quantized_whole(folder: Path, recipe: Recipe) -> dict[str, Tensor]:
    """transformers' model in float32, untied by hand, given to quantize_; configurations written out here."""
    model = load(folder)
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    group = PerGroup(recipe.group_size)
    four = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=group, weight_scale_dtype=torch.bfloat16
    )
    eight = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    rows = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    groups = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group)
    quantize_(model, rows if recipe.embedding_bits == 8 else groups, lambda m, _: isinstance(m, nn.Embedding))
    int8 = EIGHT if recipe.int8 else ()
    quantize_(model, eight, lambda _, name: name in int8)
    quantize_(model, four, lambda m, name: isinstance(m, nn.Linear) and name not in (*int8, "lm_head"))
    quantize_(model, four if recipe.head_bits == 4 else eight, lambda m, name: name == "lm_head")
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_streamed_is_torchaos(tied: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.quantization.rounding.CHUNK_ELEMENTS", 12_000)  # 93 rows of 128, 46 of 256
    source = Quantizing(Untied(open_checkpoint(tied)), recipe)
    whole = quantized_whole(tied, recipe)
    assert set(whole) == set(tensor_shapes(source.config))
    for name, weight in whole.items():
        rows = list(source.rows(name, 0, len(weight)))
        if not isinstance(weight, IntxUnpackedToInt8Tensor):
            assert torch.equal(torch.cat(rows), weight)
            continue
        pieces = [piece.as_torchao() for piece in rows if isinstance(piece, Rounded)]
        assert len(pieces) > 1
        for part in ("qdata", "scale", "zero_point"):
            found = torch.cat([getattr(piece, part) for piece in pieces])
            assert found.dtype == getattr(weight, part).dtype
            assert torch.equal(found, getattr(weight, part)), (name, part)
        for piece in pieces:
            for attribute in ("target_dtype", "block_size", "dtype", "activation_quantization"):
                assert getattr(piece, attribute) == getattr(weight, attribute), (name, attribute)
    middle = next(source.rows(EMBEDDING, 100, 103))
    assert isinstance(middle, Rounded) and torch.equal(middle.levels, whole[EMBEDDING].qdata[100:103])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", [EMBEDDING, DOWN, HEAD])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_is_torchaos_for_any_numbers(dtype: torch.dtype, name: str, bits: int) -> None:
    """Groups of zeros, of the smallest and largest numbers, of one sign, of halves that round to even."""
    torch.manual_seed(0)
    rows = torch.randn(40, 128) * torch.logspace(-40, 4, 40).unsqueeze(1)
    rows[3], rows[5], rows[7], rows[9, :32] = 0, torch.finfo(dtype).tiny, torch.finfo(dtype).max, -1.0
    rows[11] = torch.arange(128) / 2 - 7.5
    rows = rows.to(dtype)
    recipe = Recipe(True, 32, bits, bits, int8=("0",) if bits == 8 else ())
    holder = nn.Embedding(40, 128) if name == EMBEDDING else nn.Linear(128, 40, bias=False)
    holder.weight = nn.Parameter(rows.float(), requires_grad=False)
    quantize_(holder, recipe.torchao_config(name), lambda module, _: module is holder)
    ours = round_rows(rows, recipe.storage(name, 128)).as_torchao()
    for part in ("qdata", "scale", "zero_point"):
        assert torch.equal(getattr(ours, part), getattr(holder.weight, part)), part
    assert torch.equal(ours.dequantize(), holder.weight.dequantize())
    assert torch.equal(round_rows(rows, recipe.storage(name, 128)).dequantize(), holder.weight.dequantize())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_names_the_row_of_a_bad_weight(tiny: Path, bad: float) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    for file in tiny.glob("*.safetensors"):
        tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
        if name in tensors:
            tensors[name][37, 5] = bad
            save_file(tensors, file)
    source = Quantizing(Untied(open_checkpoint(tiny)), Recipe())
    with pytest.raises(BadInput, match=f"{name} has a NaN or Inf in row 37$"):
        list(source.rows(name, 0, 64))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["1.mlp.down_proj"], ["1.mlp.down_proj"]),
        (["1"], ["1.self_attn.qkv_proj", "1.self_attn.o_proj", "1.mlp.gate_up_proj", "1.mlp.down_proj"]),
        (["o_proj", "0.mlp"], ["0.self_attn.o_proj", "0.mlp.gate_up_proj", "0.mlp.down_proj", "1.self_attn.o_proj"]),
        (["mlp.down_proj", "0.mlp.down_proj"], ["0.mlp.down_proj", "1.mlp.down_proj"]),
    ],
)
def test_names_of_int8_linears(given: list[str], found: list[str], tied: Path) -> None:
    recipe = make_recipe(int8=given).resolved(read_config(tied))
    assert recipe.int8 == tuple(found)
    eight = [name for name in tensor_shapes(read_config(tied)) if "proj" in name and recipe.bits(name) == 8]
    assert eight == [f"model.layers.{name}.weight" for name in found]
    assert make_recipe(int8=given).bits(eight[0]) == 8, "also before it is resolved"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("2.mlp", "--int8 2.mlp is no linear of .*config.json, which has 0.self_attn.qkv_proj, .* 2 layers of them"),
        ("q_proj", "--int8 q_proj is no linear"),
        ("proj", "--int8 proj is no linear"),
        ("", "--int8  is no linear"),
        ("0.input_layernorm", "--int8 0.input_layernorm is no linear"),
        ("lm_head", "--int8 lm_head: the bits of lm_head are those of --head-bits"),
    ],
)
def test_refuses_names_of_no_linear(given: str, sentence: str, tied: Path, tmp_path: Path) -> None:
    for int8 in ([given], ["0", given]):
        with pytest.raises(BadInput, match=sentence):
            quantize(str(tied), out=tmp_path / "out", int8=int8)
    with pytest.raises(BadInput, match="--int8 0 is for quantized weights, and --no-quantize leaves none"):
        make_recipe(quantize=False, int8=["0"]).check(read_config(tied))
    assert not list(tmp_path.iterdir())


def test_refuses_groups_that_do_not_fit(tiny: Path) -> None:
    untied = Untied(open_checkpoint(tiny))
    with pytest.raises(BadInput, match="intermediate_size 96 cannot be cut into groups of 64, 32 columns"):
        Quantizing(untied, Recipe(group_size=64))
    with pytest.raises(BadInput, match="group size 48 is none of 32, 64, 128"):
        Quantizing(untied, Recipe(group_size=48))


@pytest.mark.parametrize("shard_gb", [5.0, 5e-4])
@pytest.mark.parametrize("linked", [True, False])
def test_untie_changes_nothing_else(
    tmp_path: Path, shard_gb: float, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoints.untied.CHUNK", 1000)  # three rows of the embedding
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError()))
    tied = synthesize(
        tmp_path / "tied", layers=2, hidden=128, intermediate=256, heads=4, vocab=512, max_shard_gb=shard_gb
    )
    out = untie(str(tied), out=tmp_path / "untied")
    before, after = open_checkpoint(tied), open_checkpoint(out)
    assert after.names() == [*before.names(), HEAD]
    for name in after.names():
        assert torch.equal(after.tensor(name), before.tensor(EMBEDDING if name == HEAD else name))
        assert after.dtype(name) == torch.bfloat16
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (tied, out))
    assert new == old | {"tie_word_embeddings": False}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tied / name).read_bytes()
    first = out / f"model-00001-of-{len(after.files):05}.safetensors"
    assert (first.stat().st_nlink == 2) == linked
    sizes_on_disk = json.loads((out / INDEX).read_text())["metadata"]["total_size"]
    assert sizes_on_disk == sum(map(after.nbytes, after.names()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tied", "untied"]


def test_untied_has_the_same_logits(tied: Path, tmp_path: Path) -> None:
    out = untie(str(tied), out=tmp_path / "untied")
    tokens = torch.arange(40, 60)[None]
    model = load(out)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, load(tied)(tokens).logits)


def test_untie_keeps_a_stored_copy(tiny: Path, tmp_path: Path) -> None:
    """A tied checkpoint may hold lm_head.weight already, with the embedding's bytes."""
    tensors = {key: value for file in tiny.glob("*.safetensors") for key, value in load_file(file).items()}
    for file in [*tiny.glob("*.safetensors"), tiny / INDEX]:
        file.unlink()
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, tiny / "model.safetensors")
    out = untie(str(tiny), out=tmp_path / "untied")
    assert torch.equal(open_checkpoint(out).tensor(HEAD), tensors[EMBEDDING])
    with pytest.raises(BadInput, match="is untied already"):
        untie(str(out), out=tmp_path / "again")
    save_file({HEAD if name == EMBEDDING else name: t for name, t in tensors.items()}, tiny / "model.safetensors")
    out = untie(str(tiny), out=tmp_path / "head alone")
    opened = open_checkpoint(out)
    assert torch.equal(opened.tensor(EMBEDDING), tensors[EMBEDDING]) and HEAD in opened.names()


def test_untie_is_whole_or_nothing(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(BadInput, match="taken already exists and is not an empty folder"):
        untie(str(tied), out=tmp_path / "taken")
    monkeypatch.setattr("checkpoints.untied._write_copy", stop)
    with pytest.raises(KeyboardInterrupt):
        untie(str(tied), out=tmp_path / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_untie_command(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untie_module, "quiet", lambda verbose: None)  # it silences the whole process
    untie_module.main(["--checkpoint", str(tied), "--out", str(tmp_path / "untied")])
    assert capsys.readouterr().out == f"{tmp_path / 'untied'}\n"
    assert HEAD in open_checkpoint(tmp_path / "untied").names()
