"""Phi-4-multimodal with a text model that was quantized before, calibrated or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.errors import BadInput
from checkpoints.families import matrix_shapes
from checkpoints.source import Source, find_source
from checkpoints.synthesize import synthesize
from export.manifest import read_manifest
from export.pte import export_pte
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantizing, Rounded
from export.quantization.saved_reader import open_quantized
from export.quantization.with_text import WithText
from export.quantize import quantize

SIZES: dict[str, Any] = {
    "layers": 2, "vision_layers": 3, "audio_layers": 2, "scale": 8, "hidden": 384, "heads": 6, "kv_heads": 2,
    "intermediate": 768, "vocab": 700,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(multimodal_folder: Path) -> Path:
    return multimodal_folder


@pytest.fixture(scope="module")
def kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "text"
    return quantize(str(folder), out=out, calibrate="gptq", calibration_sequences=1)


def values(source: Source) -> dict[str, torch.Tensor]:
    """Every weight as it would be stored: levels, or float32."""
    opened = open_quantized(source, Recipe())
    shapes = matrix_shapes(replace(opened.config, tie_word_embeddings=False))
    return {
        name: torch.cat([row.levels if isinstance(row, Rounded) else row for row in opened.rows(name, 0, shape[0])])
        for name, shape in shapes.items()
    }


def test_text_comes_from_one_and_the_rest_from_the_other(folder: Path, kept: Path) -> None:
    whole, nearest = find_source(str(folder), text_weights=kept), values(find_source(str(folder)))
    assert isinstance(open_quantized(whole, Recipe()), WithText)
    text, found = values(find_source(str(kept))), values(whole)
    assert found.keys() == nearest.keys() and text.keys() < found.keys()
    chosen = 0
    for name, levels in found.items():
        assert torch.equal(levels, (text if name in text else nearest)[name]), name
        chosen += not torch.equal(levels, nearest[name])
    assert chosen >= 2 * 4  # linears of two layers


def test_bits_of_the_rest_are_those_asked_for(folder: Path, kept: Path) -> None:
    opened = open_quantized(find_source(str(folder), text_weights=kept), Recipe(lora_bits=8, encoder_bits=4))
    assert (opened.recipe.lora_bits, opened.recipe.encoder_bits) == (8, 4)
    [rows] = opened.rows("model.layers.0.self_attn.o_proj.lora_A.vision.weight", 0, 1)
    assert isinstance(rows, Rounded) and rows.storage.bits == 8
    with pytest.raises(BadInput, match="is quantized already, as 8da4w g32.* exported as 8da4w g64"):
        open_quantized(find_source(str(folder), text_weights=kept), Recipe(group_size=64))


def test_calibrated_at_once_or_before_gives_the_same_file(folder: Path, kept: Path, tmp_path: Path) -> None:
    once = export_pte(str(folder), out=tmp_path / "once.pte", calibrate="gptq", calibration_sequences=1)
    before = export_pte(str(folder), out=tmp_path / "before.pte", text_weights=kept)
    assert (tmp_path / "once.pte").read_bytes() == (tmp_path / "before.pte").read_bytes()
    for exported in (once, before):
        assert exported.manifest["calibration"]["method"] == "gptq"
        checks = {check["name"]: check for check in exported.manifest["verification"]["checks"]}
        assert all(check["passed"] for check in checks.values()) and "checkpoint, KL against rounding" in checks
    told = read_manifest(tmp_path / "before.pte")
    assert told and told["checkpoint"]["text_weights"] == "text"
    assert {"model.safetensors", "text-weights/model.safetensors"} <= told["checkpoint"]["sha256"].keys()
    assert list(tmp_path.glob(".*")) == []


def test_refuses_what_does_not_belong_together(folder: Path, kept: Path, tmp_path: Path) -> None:
    def refused(match: str, checkpoint: Path = folder, **given: Any) -> None:
        with pytest.raises(BadInput, match=match):
            open_quantized(find_source(str(checkpoint), **{"text_weights": kept} | given), Recipe())

    refused("are quantized already, --merge vision needs the original's", merge="vision")
    refused("are quantized already, --adapter x needs the original's", adapter=["x"])
    refused("is for a model that takes more than text, .* is read without", modalities=["text"])
    refused("is of a float checkpoint, not of a quantized one", text_weights=folder)
    text = synthesize(tmp_path / "text", layers=2, hidden=384, heads=6, kv_heads=2, intermediate=768, vocab=700)
    refused("is for a model that takes more than text", checkpoint=text)
    other = quantize(
        str(synthesize(tmp_path / "other", "phi4-multimodal", **SIZES | {"vocab": 800})), out=tmp_path / "8"
    )
    refused("has vocab_size 800, .* has 700", text_weights=other)


def test_refuses_a_text_model_with_folded_norms(folder: Path, tmp_path: Path) -> None:
    folded = quantize(str(folder), out=tmp_path / "folded", calibrate="awq-gptq", calibration_sequences=1)
    record = json.loads((folded / "calibration.json").read_text())
    assert record["method"] == "awq-gptq"
    with pytest.raises(BadInput, match=r"layernorm.weight is not that of .*whose adapters read what it makes"):
        open_quantized(find_source(str(folder), text_weights=folded), Recipe())


def test_refuses_before_any_work(folder: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot end well takes no time: nothing is calibrated, and no graph is made."""

    def work(*args: Any, **given: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("export.calibration.calibrate.calibrate", work)
    monkeypatch.setattr("export.program.trace.build_graph", work)
    out = tmp_path / "mm.pte"
    for match, given in (
        (
            "--calibrate awq-gptq folds scales into norms, .* use --calibrate gptq or scales",
            {"calibrate": "awq-gptq"},
        ),
        ("are quantized already, --calibrate needs the original's", {"calibrate": "gptq", "text_weights": kept}),
        ("takes more than text, of which only the text model", {"save_quantized": tmp_path / "Q"}),
    ):
        with pytest.raises(BadInput, match=match):
            export_pte(str(folder), out=out, **given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_text_model_is_one_by_itself(folder: Path, kept: Path) -> None:
    """As of a Phi-4-mini; of its original it has the text alone."""
    opened = open_quantized(find_source(str(kept)), Recipe())
    assert opened.config.multimodal is None and not isinstance(opened, Quantizing)
    config = json.loads((kept / "config.json").read_text())
    assert config["model_type"] == "phi3" and not {"embd_layer", "audio_processor", "auto_map"} & config.keys()
