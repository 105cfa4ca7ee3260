"""The command on a card against the commands' own parsers: what is typed gives the manifest's options."""

from __future__ import annotations

import json
from typing import Any

import pytest

from export import pte, quantize
from export.calibration.options import CALIBRATION, make_calibration
from export.hub.recreate import commands, spelled
from export.options import ExportOptions, from_flags

OPTIONS: list[dict[str, Any]] = [
    {},
    {"context": 512, "prefill_chunk": 64, "kv_cache": "fp32", "speculate": 0, "full_logits": True},
    {"quantize": False, "bos_id": 3},
    {"group_size": 128, "embedding_bits": 4, "head_bits": 8, "eos_ids": (7, 9)},
    {"int8": ("0", "1.mlp.down_proj")},
    {"lora_bits": 8, "encoder_bits": 4, "max_crops": 9},
]


def manifest_of(options: ExportOptions, **changes: Any) -> dict[str, Any]:
    """As JSON gives it back."""
    from dataclasses import asdict

    checkpoint = {"name": "phi4-tiny", "kind": "embedded", "revision": None, "adapters": []}
    chosen = {"bos_id": options.bos_id, "eos_ids": list(options.eos_ids)}
    made = asdict(options) | {"bos_id": options.bos_id or 1, "eos_ids": list(options.eos_ids) or [2]}
    whole = {"file": {"name": "a b.pte"}, "checkpoint": checkpoint, "options": made, "chosen": chosen}
    found: dict[str, Any] = json.loads(json.dumps(whole | {"calibration": None} | changes))
    return found


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The flags that each command called its function with."""
    calls: list[dict[str, Any]] = []

    class Stop(Exception):
        pass

    def take(**flags: Any) -> None:
        calls.append(flags)
        raise Stop

    monkeypatch.setattr(pte, "export_pte", take)
    monkeypatch.setattr(quantize, "quantize", take)
    return calls


def run(words: list[str]) -> None:
    door = {"export.pte": pte, "export.quantize": quantize}[words[2]]
    with pytest.raises(Exception, match="^$"):
        door.main(words[3:])


def options_of(flags: dict[str, Any]) -> ExportOptions:
    own = {"checkpoint", "revision", "adapter", "adapter_scale", "out", "save_quantized", "verify", "verbose"}
    own |= {"modalities", "merge", "text_weights"}
    return from_flags(**{key: value for key, value in flags.items() if key not in {*own, *CALIBRATION}})


@pytest.mark.parametrize("given", OPTIONS)
def test_options(given: dict[str, Any], typed: list[dict[str, Any]]) -> None:
    options = from_flags(**given)
    [words] = commands(manifest_of(options))
    assert words[-2:] == ["--out", "a b.pte"] and spelled(words).endswith("--out 'a b.pte'")
    run(words)
    assert options_of(typed[0]) == options and typed[0]["checkpoint"] == "phi4-tiny"
    if not given:
        assert words[3:-2] == ["--checkpoint", "phi4-tiny"]


def test_an_older_manifest_names_the_ids_of_the_file(typed: list[dict[str, Any]]) -> None:
    [words] = commands({key: value for key, value in manifest_of(ExportOptions()).items() if key != "chosen"})
    run(words)
    assert (typed[0]["bos_id"], typed[0]["eos_ids"]) == (1, (2,))


def test_hub_adapters_and_gguf(typed: list[dict[str, Any]]) -> None:
    adapters = [{"name": "one", "scale": 1.0, "sha256": {}}, {"name": "two", "scale": 0.5, "sha256": {}}]
    checkpoint = {"name": "a/b", "kind": "hub", "revision": "c" * 40, "adapters": adapters}
    run(commands(manifest_of(ExportOptions(), checkpoint=checkpoint))[0])
    assert (typed[0]["checkpoint"], typed[0]["revision"]) == ("a/b", "c" * 40)
    assert (typed[0]["adapter"], typed[0]["adapter_scale"]) == (["one", "two"], [1.0, 0.5])
    checkpoint = {"name": "model", "kind": "gguf", "revision": None, "adapters": []}
    assert "model.gguf" in commands(manifest_of(ExportOptions(), checkpoint=checkpoint))[0]


def test_calibrated_at_once_and_in_two_steps(typed: list[dict[str, Any]]) -> None:
    from hashlib import sha256

    calibration = make_calibration("gptq", None, 3)
    assert calibration is not None
    texts = {name: sha256(text.encode()).hexdigest() for name, text in calibration.texts.items()}
    record = {"method": "gptq", "sequences": 3, "texts": texts, "checkpoint": {"name": "phi4-tiny", "adapters": []}}
    options = from_flags(head_bits=8, context=64)
    [words] = commands(manifest_of(options, calibration=record))
    run(words)
    assert options_of(typed[0]) == options
    assert (typed[0]["calibrate"], typed[0]["calibration_sequences"], typed[0]["calibration_text"]) == (
        "gptq",
        3,
        None,
    )

    kept = {"name": "KEPT", "kind": "folder", "revision": None, "adapters": []}
    record["checkpoint"] = {"name": f"a/b@{'c' * 40} + 0.5 * one", "adapters": [{"scale": 0.5, "sha256": {}}]}
    record |= {"texts": {"mine.txt": "0" * 64}, "sequences": 16}
    first, second = commands(manifest_of(options, checkpoint=kept, calibration=record))
    run(first)
    run(second)
    assert {key: typed[1][key] for key in ("checkpoint", "revision", "out", "head_bits")} == {
        "checkpoint": "a/b", "revision": "c" * 40, "out": "KEPT", "head_bits": 8,
    }  # fmt: skip
    assert (typed[1]["adapter"], typed[1]["adapter_scale"]) == (["one"], [0.5])
    assert (typed[1]["calibration_text"], typed[1]["calibration_sequences"]) == (["mine.txt"], None)
    assert (typed[2]["checkpoint"], typed[2]["calibrate"], typed[2]["context"]) == ("KEPT", None, 64)


def test_multimodal(typed: list[dict[str, Any]]) -> None:
    checkpoint = {"name": "MM", "kind": "folder", "revision": None, "adapters": [], "modalities": ["text", "vision"]}
    run(commands(manifest_of(ExportOptions(), checkpoint=checkpoint | {"merge": "vision"}))[0])
    assert (typed[0]["modalities"], typed[0]["merge"]) == (["text", "vision"], "vision")

    texts = {"mine.txt": "0" * 64}
    record = {"method": "gptq", "sequences": 3, "texts": texts, "checkpoint": {"name": "MM", "adapters": []}}
    kept = checkpoint | {"text_weights": "KEPT"}
    [words] = commands(manifest_of(ExportOptions(), checkpoint=kept, calibration=record))
    run(words)  # the same bytes at once
    assert (typed[1]["calibrate"], typed[1]["text_weights"]) == ("gptq", None)

    record["checkpoint"] = {"name": "mm-before", "adapters": []}
    first, second = commands(manifest_of(from_flags(lora_bits=8), checkpoint=kept, calibration=record))
    run(first)
    run(second)
    assert (typed[2]["checkpoint"], typed[2]["out"]) == ("mm-before", "KEPT")
    assert (typed[3]["checkpoint"], typed[3]["text_weights"], typed[3]["lora_bits"]) == ("MM", "KEPT", 8)
