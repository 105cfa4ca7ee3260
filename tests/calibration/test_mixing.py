"""int8 where it pays: what a linear costs is what transformers says; the choice is kept, made and read back."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from checkpoints.errors import BadInput
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.calibration import calibrate as module
from export.calibration.calibrate import calibrate
from export.calibration.mixing import candidates, choose, weight_bytes
from export.calibration.options import Calibration, ExtraBytes, make_calibration
from export.calibration.sensitivity import Sensitivity, measure_sensitivities
from export.calibration.work import work_folder
from export.inspect import inspect
from export.pte import export_pte, print_exported
from export.quantization.recipe import Recipe, short_name
from export.quantization.rounding import Quantizing, round_rows
from export.quantization.saved_reader import open_quantized, read_record
from export.quantize import quantize
from export.workers import workers

TINY = resolve("phi4-tiny").folder
QKV, DOWN = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions that phi4-tiny was trained on."""
    path = tmp_path_factory.mktemp("text") / "questions.txt"
    lines = map(json.loads, (TINY / "questions.jsonl").read_text().splitlines())
    path.write_text("\n".join(f"{line['question']} {line['answer']}" for line in lines))
    return path


@contextmanager
def silent(name: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda size: None


def kl(one: Tensor, other: Tensor) -> float:
    p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_sensitivities_are_those_of_the_whole_model() -> None:
    """Against transformers' model in which this weight alone is rounded; and progress adds up to what was said."""
    quantizing = Quantizing(Untied(open_checkpoint(TINY)), Recipe())
    ids = torch.arange(40, 40 + 4 * 100).view(4, 100)
    told: list[int] = []

    @contextmanager
    def watch(total: int) -> Iterator[Callable[[int], None]]:
        told.append(-total)
        yield told.append

    with torch.no_grad(), workers() as pool:
        found = measure_sensitivities(quantizing, ids, [QKV, DOWN, HEAD], "cpu", pool, watch)
    assert sum(told) == 0
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).requires_grad_(False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    table = model.model.embed_tokens.weight
    table.copy_(round_rows(table, Recipe().storage(EMBEDDING, table.shape[1])).dequantize())
    wanted = model(ids[:, :64]).logits
    for one, name in zip(found, (QKV, DOWN, HEAD), strict=True):
        weight = model.get_parameter(name)
        before = weight.clone()
        for recipe, measured, near in ((Recipe(), one.kl_int4, 1e-3), (EIGHT, one.kl_int8, 0.5)):
            weight.copy_(round_rows(before, recipe.storage(name, weight.shape[1])).dequantize())
            assert math.isclose(measured, kl(wanted, model(ids[:, :64]).logits), rel_tol=near, abs_tol=2e-6), name
        weight.copy_(before)
        rows, columns = weight.shape
        assert one.name == short_name(name)
        assert one.extra_bytes == rows * (columns + 4) - rows * (columns // 2 + columns // 32 * 2)
    assert found[2].kl_int8 < 0.1 * found[2].kl_int4


EIGHT = Recipe(head_bits=8, int8=("0", "2"))


def test_the_most_removed_per_byte_is_chosen_first() -> None:
    def one(name: str, gain: float, size: int) -> Sensitivity:
        return Sensitivity(name, gain + 0.1, 0.1, size)

    found = [one("a", 3.0, 30), one("b", 2.0, 10), one("c", 5.0, 100), one("d", 0.0, 1), one("e", 0.3, 10)]
    assert choose(found, 9) == []
    assert choose(found, 10) == ["b"]
    assert choose(found, 45) == ["b", "a"], "what is left over fits none"
    assert choose(found, 55) == ["b", "a", "e"], "c does not fit, e does"
    assert choose(found, 1000) == ["b", "a", "c", "e"], "nothing is paid where nothing is won"


@pytest.mark.parametrize(
    ("given", "budget"),
    [("5%", 50), ("0.5 %", 5), ("700", 700), ("2KB", 2000), ("1.5mb", 1_500_000), ("3GB", 3 * 10**9)],
)
def test_sizes_that_can_be_given(given: str, budget: int) -> None:
    calibration = make_calibration("scales", extra_bytes=given)
    assert calibration and calibration.extra and calibration.extra.budget(1000) == budget


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"extra_bytes": "few"}, "--extra-bytes few is no size like 5% or 20MB"),
        ({"extra_bytes": "-5%"}, "--extra-bytes -5% is no size"),
        ({"extra_bytes": "0%"}, "--extra-bytes 0% is no size"),
        ({"extra_bytes": "5%", "calibrate": None}, "--extra-bytes is for --calibrate, which is not given"),
        (
            {"extra_bytes": "1KB"},
            r"--extra-bytes 1KB is 1,000 bytes, the smallest linear, 0.self_attn.o_proj, takes 66,048 more",
        ),
        (
            {"extra_bytes": "5%", "int8": list("0123"), "head_bits": 8},
            "--extra-bytes 5% finds no linear that has 4 bits",
        ),
    ],
)
def test_bad_input_is_one_sentence(flags: dict[str, Any], sentence: str, text: Path, tmp_path: Path) -> None:
    given = {"calibrate": "scales"} | flags
    if given["calibrate"]:
        given |= {"calibration_text": [text], "calibration_sequences": 2}
    with pytest.raises(BadInput, match=sentence):
        quantize("phi4-tiny", out=tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_lm_head_takes_part_unless_its_bits_are_given() -> None:
    config = Untied(open_checkpoint(TINY)).config
    free, fixed = (candidates(config, Recipe(), ExtraBytes("9MB", 9, "MB", keep)) for keep in (False, True))
    assert set(free) - set(fixed) == {HEAD} and len(fixed) == 16
    assert len(candidates(config, Recipe(int8=("1",)), ExtraBytes("9MB", 9, "MB", True))) == 12


@pytest.fixture(scope="module")
def kept(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "kept"
    given: dict[str, Any] = {"calibration_text": [text], "calibration_sequences": 4}
    return quantize("phi4-tiny", out=out, calibrate="scales", extra_bytes="15%", **given)


def test_a_choice_is_the_recipe_that_names_it(kept: Path, text: Path, tmp_path: Path) -> None:
    """The same bytes as where it is named by hand, less lost than without, within the budget, and recorded."""
    record = read_record(kept)
    assert record
    recipe, mixed = Recipe(**record["recipe"]), record["mixed"]
    named = [one["name"] for one in mixed["linears"] if one["int8"]]
    assert set(named) == {*recipe.int8, *(["lm_head"] if recipe.head_bits == 8 else [])} and 0 < len(named) < 17
    assert len(mixed["linears"]) == 17 and 0 < mixed["extra_bytes"] <= mixed["budget_bytes"]
    assert open_quantized(resolve(str(kept)), Recipe()).recipe == recipe

    given: dict[str, Any] = {"calibrate": "scales", "calibration_text": [text], "calibration_sequences": 4}
    by_hand = quantize("phi4-tiny", out=tmp_path / "hand", int8=recipe.int8, head_bits=recipe.head_bits, **given)
    for name in ("model.safetensors", "config.json"):
        assert (by_hand / name).read_bytes() == (kept / name).read_bytes()
    plain = read_record(quantize("phi4-tiny", out=tmp_path / "plain", **given))
    assert plain and "mixed" not in plain
    losses = [one["fidelity"]["calibrated"]["kl_mean_nats"] for one in (record, plain)]
    assert losses[0] < 0.9 * losses[1], losses


def test_the_file_has_what_was_chosen_and_tells_the_price(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"context": 128, "prefill_chunk": 32}
    exported = export_pte(str(kept), out=tmp_path / "mixed.pte", **options)
    mixed = exported.manifest["calibration"]["mixed"]
    assert exported.manifest["options"]["recipe"] == exported.manifest["calibration"]["recipe"]
    inspection = inspect(exported.path, strict=True)
    assert inspection.problems == ()
    linears, table = inspection.contents.linears, inspection.contents.embedding
    assert table is not None
    held = sum(linear.weight_bytes + linear.scale_bytes for linear in linears)
    norms = inspection.contents.kinds["norms"]
    row = (table.weight_bytes + table.scale_bytes) // table.rows
    assert mixed["token_bytes_mixed"] == held + norms + row
    weights = held + norms + table.weight_bytes + table.scale_bytes
    assert mixed["weight_bytes"] + mixed["extra_bytes"] == weights
    assert mixed["weight_bytes"] == weight_bytes(Untied(open_checkpoint(TINY)).config, Recipe())
    print_exported(exported)
    chosen = sum(one["int8"] for one in mixed["linears"])
    assert f"{chosen} of 17 linears are int8 for {mixed['extra_bytes']:,} bytes" in " ".join(
        capsys.readouterr().out.split()
    )


def test_same_bytes_with_any_number_of_threads_and_after_a_stop(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = synthesize(tmp_path / "c", layers=3, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=512)
    calibration = Calibration("gptq", {"text": text.read_text()}, 3, extra=ExtraBytes("12%", 12, "%", False))
    monkeypatch.setattr("export.calibration.calibrate.SEQUENCE", 64)

    def run(out: Path, threads: int) -> bytes:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            calibrate(resolve(str(folder)), Recipe(), calibration, out, silent)
        finally:
            torch.set_num_threads(before)
        return b"".join(path.read_bytes() for path in sorted(out.iterdir()))

    whole = run(tmp_path / "one", 1)
    assert run(tmp_path / "three", 3) == whole

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "quantize_layers", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", 2)
    assert (work_folder(tmp_path / "stopped") / "sensitivities.json").is_file()
    monkeypatch.setattr(module, "measure_sensitivities", stop)
    assert run(tmp_path / "stopped", 2) == whole, "what was measured is not measured again"
    assert not work_folder(tmp_path / "stopped").exists()


def test_lm_head_in_8_bits_is_calibrated(text: Path, tmp_path: Path) -> None:
    """Its levels are not those nearest, its file is verified against the original, and loses less than rounding."""
    given: dict[str, Any] = {"calibration_text": [text], "calibration_sequences": 4, "context": 128}
    exported = export_pte(
        "phi4-tiny", out=tmp_path / "tiny.pte", calibrate="gptq", head_bits=8, prefill_chunk=32, **given,
        save_quantized=tmp_path / "kept",
    )  # fmt: skip
    record = exported.manifest["calibration"]
    assert exported.manifest["verification"]["passed"] and record["recipe"]["head_bits"] == 8
    fidelity = record["fidelity"]
    assert fidelity["calibrated"]["kl_mean_nats"] < 0.9 * fidelity["nearest"]["kl_mean_nats"]
    (head,) = [one for one in inspect(exported.path, strict=True).contents.linears if one.is_head]
    assert (head.weight, head.group_size) == ("int8", None)
    opened = open_quantized(resolve(str(tmp_path / "kept")), Recipe())
    nearest = Quantizing(Untied(open_checkpoint(TINY)), dataclasses.replace(Recipe(), head_bits=8))
    levels = [next(source.rows(HEAD, 0, 64)).levels for source in (opened, nearest)]  # type: ignore[union-attr]
    assert levels[0].abs().max() > 100 and not torch.equal(*levels)
