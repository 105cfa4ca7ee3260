"""What can be chosen of a multimodal export: each file has the methods for it, and passes its own verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.inspect import inspect
from export.manifest import read_manifest
from export.pte import export_pte
from export.ptefile.reader import open_pte

TEXT = {"forward"}
BOTH = {"token_embedding", "text_decoder", "text_decoder_text"}
VISION = {"vision_encoder", "vision_crop", "vision_separators"}
AUDIO = {"audio_encoder", "audio_subsample", "audio_conformer_speech"}
CHOICES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "pictures alone": ({"modalities": ["text", "vision"]}, TEXT | BOTH | VISION),
    "sound alone": ({"modalities": ["audio"]}, TEXT | BOTH | AUDIO),
    "vision merged": ({"merge": "vision"}, TEXT),
    "speech merged": ({"merge": "speech"}, TEXT),
    "other bits": (
        {"lora_bits": 8, "encoder_bits": 4, "group_size": 64, "head_bits": 8, "max_crops": 9},
        TEXT | BOTH | VISION | AUDIO | {"text_decoder_speech", "audio_conformer_vision"},
    ),
}


@pytest.mark.parametrize("chosen", CHOICES)
def test_exports_and_verifies(multimodal_folder: Path, tmp_path: Path, chosen: str) -> None:
    given, methods = CHOICES[chosen]
    exported = export_pte(str(multimodal_folder), out=tmp_path / "mm.pte", context=1024, **given)
    plans = {plan.name for plan in open_pte(exported.path).program.execution_plan}
    assert {name for name in plans if not name.startswith(("get_", "use_", "enable_"))} == methods
    checks = exported.manifest["verification"]["checks"]
    assert all(check["passed"] for check in checks)
    names = {check["name"] for check in checks}
    assert ("vision_encoder" in names) == ("vision_encoder" in methods)
    assert ("sound, speech" in names) == ("audio_subsample" in methods)
    assert ("sound, vision" in names) == ("audio_conformer_vision" in methods)
    manifest = read_manifest(exported.path)
    assert manifest and manifest["checkpoint"]["merge"] == given.get("merge")
    assert manifest["checkpoint"]["modalities"] == given.get("modalities")
    image = manifest["media"]["image"]
    assert (image or {}).get("max_crops") == (given.get("max_crops", 4) if "vision_crop" in methods else None)
    assert inspect(exported.path)


def test_merged_files_differ_from_each_other_and_from_the_text(multimodal_folder: Path, tmp_path: Path) -> None:
    """`test_phi4mm` compares what is merged with peft; here it has reached the file."""
    made = []
    for name, given in (
        ("text", {"modalities": ["text"]}),
        ("vision", {"merge": "vision"}),
        ("speech", {"merge": "speech"}),
    ):
        exported = export_pte(
            str(multimodal_folder),
            out=tmp_path / f"{name}.pte",
            context=256,
            verify=False,
            **given,  # type: ignore[arg-type]
        )
        made.append(exported.path.read_bytes())
    assert len({len(data) for data in made}) == 1 and len(set(made)) == 3
