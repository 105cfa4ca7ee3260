"""What is beside a model: manifests of today and of before, and the tokenizer it was exported with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import BadInput
from export.bench.model import manifest_facts
from export.bench.plan import make_plan

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
