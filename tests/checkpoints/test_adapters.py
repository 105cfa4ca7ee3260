"""Adapters merged while rows are read, against peft's own merge of the same folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoints.adapters import BLOCK
from checkpoints.errors import BadInput
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.source import Adapter, find_source
from checkpoints.synthesize import synthesize
from checkpoints.weights import open_checkpoint

QKV = "model.layers.1.self_attn.qkv_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, with more rows in a weight than are multiplied at once."""
    out = tmp_path_factory.mktemp("base") / "base"
    return synthesize(out, layers=2, hidden=64, intermediate=96, heads=4, vocab=512, untied=True)


def float_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train(folder: Path, out: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter of peft on `folder` whose factors are random numbers, saved as peft saves it."""
    model = get_peft_model(float_model(folder), LoraConfig(**{"r": 4, "lora_alpha": 12, **settings}))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(out)
    return out


def merged_by_peft(folder: Path, *adapters: Path) -> dict[str, Tensor]:
    model = float_model(folder)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(model.state_dict())


def check(folder: Path, adapters: tuple[Adapter, ...], reference: dict[str, Tensor]) -> int:
    """All weights are the reference's, whole and by pieces; how many the adapters changed."""
    plain, opened = open_checkpoint(folder), open_checkpoint(folder, adapters)
    changed = 0
    for name in opened.names():
        whole = opened.tensor(name).float()
        torch.testing.assert_close(whole, reference[name], rtol=1e-6, atol=1e-7)
        rows = len(whole)
        for start, stop in ((0, 1), (BLOCK - 3, BLOCK + 5), (rows - 2, rows), (7, rows - 1)):
            piece = opened.rows(name, start, min(stop, rows))
            assert torch.equal(piece.float(), whole[start:stop]), "bit for bit the same, however it is read"
        changed += name not in plain.names() or not torch.equal(whole, plain.tensor(name).float())
    return changed


SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "all linears": ({"target_modules": "all-linear"}, 8),
    "rslora, r and alpha of single modules": (
        {
            "target_modules": ["qkv_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"down_proj": 7, r"layers\.1\.self_attn\.qkv_proj": 3},
            "alpha_pattern": {"0.mlp.down_proj": 5},
        },
        4,
    ),
    "embedding and head": ({"target_modules": ["embed_tokens", "lm_head"]}, 2),
    "whole weights": ({"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]}, 8),
}


@pytest.mark.parametrize(("settings", "changed"), SETTINGS.values(), ids=SETTINGS.keys())
def test_equals_pefts_merge(settings: dict[str, Any], changed: int, base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "adapter", **settings)
    assert check(base, (Adapter(adapter),), merged_by_peft(base, adapter)) == changed


def test_several_adapters_each_with_its_scale(base: Path, tmp_path: Path) -> None:
    one = train(base, tmp_path / "one", 1, target_modules=["qkv_proj"])
    two = train(base, tmp_path / "two", 2, target_modules=["qkv_proj", "o_proj"], r=9)
    source = find_source(str(base), adapter=[one, two], adapter_scale=[0.5, -2])
    assert str(source) == "base + 0.5 * one + -2 * two"
    reference = merged_by_peft(base)
    for adapter, scale in ((one, 0.5), (two, -2)):
        delta = merged_by_peft(base, adapter)
        plain = merged_by_peft(base)
        for name in reference:
            reference[name] = reference[name] + scale * (delta[name] - plain[name])
    opened = open_checkpoint(base, source.adapters)
    for name in opened.names():
        torch.testing.assert_close(opened.tensor(name).float(), reference[name], rtol=1e-5, atol=1e-6)
    assert check(base, (Adapter(one), Adapter(two)), merged_by_peft(base, one, two)) == 4


def test_llamas_names_on_fused_weights_and_the_other_way(base: Path, tmp_path: Path) -> None:
    """An adapter of q_proj is one of some rows of qkv_proj, whichever the checkpoint has."""
    adapter = train(base, tmp_path / "adapter", target_modules=["qkv_proj", "gate_up_proj"])
    reference = merged_by_peft(base, adapter)
    factors = load_file(adapter / "adapter_model.safetensors")
    split: dict[str, Tensor] = {}
    for name, tensor in factors.items():
        for fused, parts in (("qkv_proj", {"q": 64, "k": 64, "v": 64}), ("gate_up_proj", {"gate": 96, "up": 96})):
            if fused in name:
                pieces = tensor.split(list(parts.values())) if "lora_B" in name else [tensor] * len(parts)
                named = zip(parts, pieces, strict=True)
                split |= {name.replace(fused, f"{part}_proj"): piece.clone() for part, piece in named}
    save_file(split, adapter / "adapter_model.safetensors")
    assert check(base, (Adapter(adapter),), reference) == 4


def test_tied_embeddings_keep_apart_what_was_trained_apart(tiny_folder: Path, tmp_path: Path) -> None:
    """As the model that is not merged computes it; peft's merge changes both."""
    adapter = train(tiny_folder, tmp_path / "adapter", target_modules=["lm_head"])
    model = PeftModel.from_pretrained(float_model(tiny_folder), adapter)
    opened, ids = open_checkpoint(tiny_folder, (Adapter(adapter),)), torch.arange(9).unsqueeze(0)
    assert not opened.config.tie_word_embeddings
    with torch.no_grad():
        head = model.base_model.model.lm_head
        torch.testing.assert_close(torch.eye(64) @ opened.tensor(HEAD).T, head(torch.eye(64)), rtol=1e-5, atol=1e-6)
        assert torch.equal(opened.tensor(EMBEDDING)[ids].float(), model.get_input_embeddings()(ids))
    save = train(tiny_folder, tmp_path / "save", target_modules=["o_proj"], modules_to_save=["lm_head"])
    opened = open_checkpoint(tiny_folder, (Adapter(save),))
    assert not torch.equal(opened.tensor(HEAD), opened.tensor(EMBEDDING))


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / "adapter_model.safetensors")
        change(found)
        save_file(found, folder / "adapter_model.safetensors")

    return rewrite


A = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_A.weight"
REFUSED: list[tuple[Callable[[Path], Any], str]] = [
    (edit(peft_type="IA3"), 'peft_type is "IA3", only LORA'),
    (edit(use_dora=True), "use_dora is true"),
    (edit(layer_replication=[[0, 2], [1, 2]]), "layer_replication is"),
    (edit(init_lora_weights="pissa"), '"pissa", which changes the model\'s own weights'),
    (edit(lora_alpha=None), "lora_alpha must be a number, it is null"),
    (edit(r=8), r"r of model.layers.\d.self_attn.qkv_proj is 8, its factors in adapter_model.safetensors have 4"),
    (edit(r=10**400), "r must be a number"),
    (edit(alpha_pattern={"(": 1}), r'"\(" of alpha_pattern is no regular expression'),
    (edit(rank_pattern=[1]), r"rank_pattern must be an object, it is \[1\]"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors, and pickle"),
    (
        lambda folder: (folder / "adapter_model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "pointer of git-lfs",
    ),
    (tensors(lambda t: t.pop(A)), "lora_B of .*layers.1.*cannot be merged"),
    (tensors(lambda t: t.update({A: t[A][:, :7].clone()})), r"of shape \(192, 64\) cannot have .* \(4, 7\)"),
    (tensors(lambda t: t.update({A.replace("layers.1", "layers.9"): t[A].clone()})), "layers.9.*cannot be merged"),
    (tensors(lambda t: t.update({"x.lora_magnitude_vector": torch.ones(3)})), "lora_magnitude_vector.*cannot be"),
    (tensors(lambda t: t.update({A: t[A].to(torch.int8)})), "is torch.int8"),
]


@pytest.mark.parametrize(("damage", "sentence"), REFUSED, ids=[sentence[:30] for _, sentence in REFUSED])
def test_refuses(damage: Callable[[Path], Any], sentence: str, base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "adapter", target_modules=["qkv_proj"])
    damage(adapter)
    with pytest.raises(BadInput, match=sentence) as caught:
        open_checkpoint(base, (Adapter(adapter),))
    assert str(adapter) in str(caught.value) and str(caught.value).isprintable()


def test_as_many_scales_as_adapters(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--adapter-scale is given 1 times and --adapter 2 times"):
        find_source("phi4-tiny", adapter=["a", "b"], adapter_scale=[1.0])
    with pytest.raises(BadInput, match="--adapter-scale nan is not a finite number"):
        find_source("phi4-tiny", adapter=["a"], adapter_scale=[float("nan")])
