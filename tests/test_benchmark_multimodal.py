"""benchmarks.multimodal on a small file: every prompt is measured in each engine, and refusals are sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.multimodal import compare
from checkpoints.errors import BadInput


def test_measures_every_prompt(multimodal_pte: Path) -> None:
    report = compare(multimodal_pte, ["wheel"], (448, 448), 1.0, new_tokens=2, rounds=1)
    rows = {result["prompt"]: result["median"] for result in report["results"]}
    assert list(rows) == ["text", "picture", "sound", "both"]
    # A picture of one crop is 545 tokens, a second of sound 13.
    assert {name: row["tokens"] - rows["text"]["tokens"] for name, row in rows.items()} == {
        "text": 0, "picture": 545, "sound": 13, "both": 558,
    }  # fmt: skip
    assert rows["text"]["encode_ms"] == 0 and all(
        rows[name]["encode_ms"] > 0 for name in ("picture", "sound", "both")
    )
    assert all(row["prefill_ms"] > 0 and row["decode_ms"] > 0 and row["private_bytes"] > 0 for row in rows.values())
    assert report["peak_private_bytes"]["wheel"] >= max(row["private_bytes"] for row in rows.values()) * 0.9


def test_refuses_a_text_file(tiny_pte: Path) -> None:
    with pytest.raises(BadInput, match="does not take both pictures and sound"):
        compare(tiny_pte, ["wheel"], rounds=1)
    with pytest.raises(BadInput, match="--engines has theirs, not ours or wheel"):
        compare(tiny_pte, ["theirs"])
