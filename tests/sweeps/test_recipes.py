"""Recipes of a sweep are flags of export.pte, and the choice among measured ones is the one that a search finds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import BadInput
from checkpoints.published import published_config
from export import pte
from export.planning.phones import phone_with
from export.sweeps.chart import front
from export.sweeps.recipes import DEFAULT, read_recipes
from export.sweeps.rows import best, fit_of, make_rows


@pytest.mark.parametrize("recipe", read_recipes(f"{DEFAULT}; float32; kv-cache=fp32 speculate=0 g128"))
def test_a_recipe_is_what_the_command_takes(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words on the command line of export.pte give its flags."""
    taken: dict[str, Any] = {}

    def export_pte(**flags: Any) -> None:
        taken.update(flags)
        raise BadInput("seen")

    monkeypatch.setattr(pte, "export_pte", export_pte)
    with pytest.raises(BadInput, match="seen"):
        pte.main([*recipe.words, "--out", "x.pte"])
    assert recipe.flags.items() <= taken.items()
    ours = {"out", "checkpoint", "revision", "adapter", "adapter_scale", "context", "bos_id", "eos_ids"}
    ours |= {"modalities", "merge", "text_weights", "max_crops"}
    assert taken.keys() - recipe.flags.keys() == ours | {"save_quantized", "verify", "verbose"}


def test_the_default_has_six_and_more() -> None:
    recipes = read_recipes(DEFAULT)
    assert len(recipes) >= 6
    assert recipes[1].words == ("--group-size=64",) and recipes[1].options(2048).recipe.group_size == 64
    assert recipes[-1].calibration is not None and recipes[-1].options(64).context == 64


def test_yaml(tmp_path: Path) -> None:
    file = tmp_path / "recipes.yaml"
    file.write_text("small: {group-size: 128, quantize: true}\nplain:\nlong: g64 scales\nfloat: {quantize: false}\n")
    with pytest.raises(BadInput, match=r"--quantize': unrecognized arguments"):
        read_recipes(str(file))
    file.write_text("small: {group_size: 128}\nplain:\nlong: g64 scales\nfloat: {quantize: false}\n")
    small, plain, long, whole = read_recipes(str(file))
    assert (small.name, small.words, plain.words) == ("small", ("--group-size=128",), ())
    assert long.words == ("--group-size=64", "--calibrate=scales") and whole.flags["quantize"] is False
    file.write_text("- g64\n- {head-bits: 8}\n")
    assert [one.name for one in read_recipes(str(file))] == ["g64", "--head-bits=8"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("g33", "--recipes 'g33': --group-size: invalid choice: 33"),
        ("8da4w; zork", "--recipes 'zork': unrecognized arguments: --zork"),
        ("g64; g64", "has the same twice: 'g64' and 'g64'"),
        ("8da4w; g32", "has the same twice: '8da4w' and 'g32'"),
        (" ; ", "names no recipe"),
        ("context=64", "--context is for the whole sweep"),
        ("none.yaml", "none.yaml cannot be read"),
        ("number.yaml", "number.yaml holds 3, not a list or a mapping"),
        ("broken.yaml", "broken.yaml is not YAML"),
        ("nested.yaml", "is neither words nor flags with values"),
    ],
)
def test_refusals(given: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("number", "3"), ("broken", "a: [1"), ("nested", "a: [1, 2]")):
        Path(f"{name}.yaml").write_text(text)
    with pytest.raises(BadInput) as raised:
        read_recipes(given)
    assert sentence in str(raised.value)


def test_the_front_is_what_no_other_beats() -> None:
    draw = random.Random(0)
    points = [(float(draw.randrange(12)), float(draw.randrange(12))) for _ in range(60)]
    beaten = [any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]
    assert {points[n] for n in front(points)} == {
        point for point, worse in zip(points, beaten, strict=True) if not worse
    }
    assert front([(1.0, 1.0), (1.0, 1.0)]) == [0] and front([]) == []


def test_the_best_is_the_nearest_at_the_longest_context_that_fits() -> None:
    config = published_config()
    rows = make_rows(config, read_recipes("8da4w; g64; kv-cache=fp32; prefill-chunk=1"), (2048, 4096))
    assert rows[3].problem == "--prefill-chunk 1 is not within 2 to 4096, the context"
    for row, kl in zip(rows, (0.3, 0.5, 0.1, None), strict=True):
        if kl is not None:
            row.found["evaluate"] = {"kl": {"value": kl, "error": 0.01}}
    widest, narrow = phone_with("8GB"), phone_with("800MB")
    first, second = best(config, rows, widest), best(config, rows, narrow)
    assert first and (first.row.name, first.context) == ("kv-cache=fp32", 4096)
    assert second and (second.row.name, second.context) == ("8da4w", 4096)
    assert not fit_of(config, rows[2], 4096, narrow).fits and second.fit.fits
    assert best(config, rows, phone_with("10MB")) is None


def test_other_rotary_tables_are_other_rows() -> None:
    """Above 4096 tokens a file of Phi-4-mini has the long factors: its quality is not that of the short ones."""
    rows = make_rows(published_config(), read_recipes("8da4w"), (8192, 2048, 4096))
    assert [(row.name, row.contexts) for row in rows] == [("8da4w @4096", (2048, 4096)), ("8da4w @8192", (8192,))]
