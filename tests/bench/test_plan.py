"""What is beside a model: manifests of today and of before, and the tokenizer it was exported with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import BadInput
from export.bench.model import manifest_facts, media_tokens
from export.bench.plan import make_plan, parse_modes

NUMBERS = {"quantized": True, "group_size": 32, "embedding_bits": 8, "head_bits": 4}


def manifest(pte: Path, **changes: Any) -> None:
    options = {"context": 4096, "prefill_chunk": 256, "kv_cache": "bf16", "full_logits": False, "recipe": NUMBERS}
    whole = {
        "checkpoint": {"name": "phi4-tiny"},
        "recipe": "8da4w g32, embedding int8, lm_head int4",
        "options": options,
        "planned": {"kv_cache_bytes": 100, "activation_bytes": 20},
    }
    pte.with_suffix(".json").write_text(json.dumps(whole | changes))


def test_the_recipe_is_a_text_for_people(pte: Path) -> None:
    manifest(pte)
    facts = manifest_facts(pte)
    assert facts is not None and facts["recipe"] == "8da4w g32, embedding int8, lm_head int4"
    assert facts["context_tokens"] == 4096 and facts["planned_memory_bytes"] == 120


def test_a_manifest_of_before_is_read(pte: Path) -> None:
    options = {"context": 256, "prefill_chunk": 32, "kv_cache": "fp32", "recipe": "8da4w g32"}
    manifest(pte, options=options)
    older = json.loads(pte.with_suffix(".json").read_text())
    del older["recipe"]
    pte.with_suffix(".json").write_text(json.dumps(older))
    facts = manifest_facts(pte)
    assert facts is not None and facts["recipe"] == "8da4w g32"


def test_another_tokenizer_is_refused_unless_it_was_asked_for(pte: Path) -> None:
    tokenizer = pte.parent / "tokenizer.json"
    right, wrong = hashlib.sha256(tokenizer.read_bytes()).hexdigest(), "ab" * 32
    manifest(pte, files={"tokenizer.json": right})
    assert make_plan(pte=pte).tokenizer == tokenizer
    manifest(pte, files={"tokenizer.json": wrong})
    with pytest.raises(BadInput) as refused:
        make_plan(pte=pte)
    assert str(refused.value) == (
        f"{tokenizer} is not the tokenizer that model.pte was exported with: its sha256 is {right[:12]}…, "
        f"model.json says {wrong[:12]}…: give the right one with --tokenizer"
    )
    assert make_plan(pte=pte, tokenizer=tokenizer).tokenizer == tokenizer


@pytest.mark.parametrize("damage", [{"recipe": 7}, {"options": {}}, {"planned": None}])
def test_what_is_no_manifest_is_refused(damage: dict[str, Any], pte: Path) -> None:
    manifest(pte, **damage)
    with pytest.raises(BadInput, match=r"model\.json is no manifest of model\.pte"):
        manifest_facts(pte)


IMAGE = {"crop": 448, "patch": 14, "pooled": 16, "max_crops": 36, "mean": 0.5, "std": 0.5}
AUDIO = {
    "rate": 16000, "bins": 80, "frame": 400, "hop": 160, "fft": 512, "preemphasis": 0.97, "low_hz": 0.0,
    "high_hz": 7690.0, "frames_per_token": 8, "window": 500, "piece": 335, "before": 8, "after": 7,
}  # fmt: skip
NO_MEDIA = {"image": None, "image_id": None, "audio": None, "audio_id": None}


def test_a_multimodal_file_is_measured_in_all_its_modes(pte: Path) -> None:
    assert make_plan(pte=pte).modes == ("text",), "without a manifest nothing is known"
    manifest(pte, media=NO_MEDIA)
    assert make_plan(pte=pte).modes == ("text",)
    with pytest.raises(BadInput, match=r"--modes vision: .*model\.pte has the modes text$"):
        make_plan(pte=pte, modes=("vision",))
    manifest(pte, media=NO_MEDIA | {"image": IMAGE, "image_id": 1, "audio": AUDIO, "audio_id": 2})
    plan = make_plan(pte=pte, prompt_tokens=(64, 512))
    assert [(one["prompt_tokens"], one.get("mode")) for one in plan.configurations()] == [
        (64, None), (512, None), (64, "vision"), (64, "speech"),
    ]  # fmt: skip
    speech = make_plan(pte=pte, modes=("speech",)).configurations()
    assert [one["mode"] for one in speech] == ["speech"]
    assert media_tokens(pte, plan.modes) == {"vision": 545, "speech": 63}
    measured = {"encode_ms": 1234.5, "decode_tokens_per_s": 9.0, "prefill_tokens_per_s": 80.0}
    line = plan.repeat_line(2, 0, measured)
    assert line == "64 tokens with a picture, repeat 1 of 5: encode 1,234 ms, decode 9.0, prefill 80.0 tokens/s"


@pytest.mark.parametrize(
    ("modes", "said"),
    [("text,sight", "names sight: there are text, vision, speech"), ("text,text", "names a mode twice")],
)
def test_wrong_modes_are_refused(modes: str, said: str, pte: Path) -> None:
    with pytest.raises(BadInput) as refused:
        make_plan(pte=pte, modes=parse_modes(modes))
    assert str(refused.value) == f"--modes {modes} {said}"


def test_a_picture_must_fit_the_context(pte: Path) -> None:
    options = {"context": 700, "prefill_chunk": 256, "kv_cache": "bf16", "full_logits": False, "recipe": NUMBERS}
    manifest(pte, options=options, media=NO_MEDIA | {"image": IMAGE, "image_id": 1})
    assert make_plan(pte=pte, prompt_tokens=(64,), new_tokens=64).modes == ("text", "vision")
    with pytest.raises(BadInput) as refused:
        make_plan(pte=pte, prompt_tokens=(64,), new_tokens=128)
    assert str(refused.value) == (
        f"64 prompt tokens with a picture of 545 and 128 new ones do not fit into the 700 tokens of {pte}: "
        "leave vision out of --modes"
    )
    make_plan(pte=pte, prompt_tokens=(64,), new_tokens=128, modes=("text",))


@pytest.mark.parametrize("media", [7, {"image": {"crop": 448}}, {"image": IMAGE}])
def test_media_that_are_none_are_refused(media: Any, pte: Path) -> None:
    manifest(pte, media=media)
    with pytest.raises(BadInput, match=r"model\.json is no manifest of model\.pte"):
        make_plan(pte=pte)
