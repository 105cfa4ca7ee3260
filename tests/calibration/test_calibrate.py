"""Calibrated checkpoints: the same bytes every time, the same function where nothing is rounded, less lost."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from checkpoints.config import read_config
from checkpoints.errors import BadInput
from checkpoints.source import resolve
from checkpoints.synthesize import synthesize
from export.calibration import layers
from export.calibration.calibrate import calibrate
from export.calibration.folding import move, unfold_rows
from export.calibration.layers import memory_needed
from export.calibration.moments import activations, mean_squares, moments
from export.calibration.options import METHODS, Calibration, make_calibration
from export.calibration.work import work_folder
from export.models.registry import family_of
from export.pte import export_pte
from export.quantization.recipe import Recipe
from export.quantization.saved_reader import open_quantized, read_record
from export.quantize import main, quantize
from export.reference.kept import KeptWeights
from export.reference.layerwise import round_activations
from export.verify import print_report, verify
from export.workers import workers

TINY = resolve("phi4-tiny").folder
SEQUENCES = 4


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions that phi4-tiny was trained on."""
    path = tmp_path_factory.mktemp("text") / "questions.txt"
    lines = map(json.loads, (TINY / "questions.jsonl").read_text().splitlines())
    path.write_text("\n".join(f"{line['question']} {line['answer']}" for line in lines))
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """phi4-tiny by the best method."""
    out = tmp_path_factory.mktemp("kept") / "kept"
    return quantize("phi4-tiny", out=out, calibrate="awq-gptq", calibration_text=[text], calibration_sequences=4)


@contextmanager
def silent(name: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda size: None


def test_moments_are_sums_over_tokens() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 20, 300)
    flat = x.view(60, 300).double()
    with workers() as pool:
        assert torch.allclose(moments(x, pool).double(), flat.T @ flat / 60, atol=1e-5)
        assert torch.allclose(mean_squares(x, pool).double(), flat.square().mean(0), rtol=1e-6)


def test_large_activations_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.calibration.moments.SPILL", 1000)
    room = activations((3, 100, 4), tmp_path, "cpu")
    room.fill_(2.5)
    assert room.sum() == 3000 and room.is_contiguous()
    assert "deleted" in next(
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    )


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(40, 90)[None]).logits
    return found


def test_a_folded_model_is_the_same_function(tmp_path: Path) -> None:
    """Grouped queries, and an untied head; factors of a hundred, where AWQ's are of ten."""
    folder = synthesize(
        tmp_path / "c", layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=512, untied=True
    )
    config = read_config(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = logits(model)
    generator = torch.Generator().manual_seed(0)

    def factors(count: int) -> torch.Tensor:
        return 10 ** (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)

    with torch.no_grad():
        for layer in model.model.layers:
            layer.requires_grad_(False)
            weights = dict(layer.named_parameters())
            for site in family_of(config).sites(config):
                was = weights[site.linear].clone()
                move(weights, site, factors(site.feeder.stop - site.feeder.start))
                assert not torch.allclose(was, weights[site.linear], rtol=0.1)
        head = factors(64)
        model.lm_head.weight.mul_(head)
        model.model.norm.weight.copy_(unfold_rows(model.model.norm.weight, head))
    assert (logits(model) - before).abs().max() < 1e-4 * before.abs().max()


def test_a_cut_layer_is_the_whole_one() -> None:
    """With the inputs of its linears rounded, against hooks on transformers' own model."""
    config = read_config(TINY)
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ids = torch.arange(100, 160)[None]
    with torch.no_grad():
        hidden = model.model.embed_tokens(ids)
        position_ids = torch.arange(60)[None]
        around = {
            "attention_mask": None,
            "position_embeddings": model.model.rotary_emb(hidden, position_ids),
            "position_ids": position_ids,
        }
        layer = model.model.layers[1].requires_grad_(False)
        hooks = [
            module.register_forward_pre_hook(lambda _, args: (round_activations(args[0]),))
            for module in layer.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        expected = layer(hidden, **around)
        for hook in hooks:
            hook.remove()
        cut, x = family_of(config).cut(layer), hidden
        for k in range(4):
            hidden, x = cut.enter(k, hidden, x, around)
            x = round_activations(x)
    assert torch.allclose(cut.leave(hidden, x), expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_same_bytes_with_any_number_of_threads_and_after_a_stop(
    method: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = synthesize(tmp_path / "c", layers=3, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=512)
    calibration = Calibration(method, {"text": text.read_text()}, 3)
    monkeypatch.setattr("export.calibration.calibrate.SEQUENCE", 64)

    def run(out: Path, threads: int) -> bytes:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            calibrate(resolve(str(folder)), Recipe(), calibration, out, silent)
        finally:
            torch.set_num_threads(before)
        assert not work_folder(out).exists()
        return b"".join(path.read_bytes() for path in sorted(out.iterdir()))

    whole = run(tmp_path / "one", 1)
    assert run(tmp_path / "three", 3) == whole

    seen = []
    quantize_layer = layers._Run.layer

    def stop_at_last(self: Any, number: int) -> Any:
        seen.append(number)
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt
        return quantize_layer(self, number)

    monkeypatch.setattr(layers._Run, "layer", stop_at_last)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 2)
    assert not (tmp_path / "stopped").exists() and work_folder(tmp_path / "stopped").is_dir()
    assert run(tmp_path / "stopped", 2) == whole and seen == [0, 1, 2, 2], "goes on with the layer it was stopped in"


def test_work_of_something_else_is_begun_anew(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = synthesize(tmp_path / "c", layers=2, hidden=64, intermediate=96, heads=4, vocab=512)
    monkeypatch.setattr("export.calibration.calibrate.SEQUENCE", 64)
    left = work_folder(tmp_path / "out")
    left.mkdir()
    (left / "plan.json").write_text('{"method": "another"}')
    shutil.copy(folder / "config.json", left / "hidden-00002.safetensors")
    calibrate(
        resolve(str(folder)), Recipe(), Calibration("scales", {"text": text.read_text()}, 2), tmp_path / "out", silent
    )
    assert read_record(tmp_path / "out")


def test_every_method_loses_less_than_rounding(text: Path, kept: Path, tmp_path: Path) -> None:
    """phi4-tiny was trained with rounded weights and on this text only in part, so there is little to win."""
    given: dict[str, Any] = {"calibration_text": [text], "calibration_sequences": SEQUENCES}
    found = {"awq-gptq": read_record(kept)}
    for method in ("scales", "gptq"):
        found[method] = read_record(quantize("phi4-tiny", out=tmp_path / method, calibrate=method, **given))
    plain = quantize("phi4-tiny", out=tmp_path / "plain")
    losses = {name: record["fidelity"]["calibrated"]["kl_mean_nats"] for name, record in found.items() if record}
    nearest = found["gptq"]["fidelity"]["nearest"]["kl_mean_nats"]  # type: ignore[index]
    assert max(losses.values()) < 0.9 * nearest, (losses, nearest)
    folders = [kept, plain, tmp_path / "scales", tmp_path / "gptq"]
    sizes = {(folder / "model.safetensors").stat().st_size for folder in folders}
    assert len(sizes) == 1, "nothing but levels and scales differs"


def test_the_file_has_the_checkpoints_levels_and_its_losses(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"context": 128, "prefill_chunk": 32}
    exported = export_pte(str(kept), out=tmp_path / "tiny.pte", **options)
    record = read_record(kept)
    assert record and exported.manifest["calibration"] == record
    assert exported.manifest["verification"]["calibration"] == record
    assert "calibration.json" in exported.manifest["checkpoint"]["sha256"]
    plain = export_pte("phi4-tiny", out=tmp_path / "plain.pte", verify=False, **options)
    assert exported.path.stat().st_size == plain.path.stat().st_size

    report = verify(exported.path, str(kept), original="phi4-tiny", tokens=128)
    print_report(report)
    assert report.passed, report.failures
    checks = {check.name: check for check in report.checks}
    assert checks["weights, levels"].measured < 1e-3 and checks["weights, float32"].measured == 0
    against = checks["checkpoint, KL against rounding"]
    assert against.measured < 0.9 * against.bound
    assert report.quality.kl_mean_nats > 0.003, "against the original, not against itself"
    assert "calibrated (awq-gptq); against the original phi4-tiny" in " ".join(capsys.readouterr().out.split())

    print_report(dataclasses.replace(report, quality=dataclasses.replace(report.quality, kl_mean_nats=0.5)))
    assert "far from the checkpoint" in capsys.readouterr().out

    wrong = verify(plain.path, str(kept), original="phi4-tiny", short=True)
    assert any(failure.startswith("weights, levels") for failure in wrong.failures)


def test_levels_that_lose_more_than_rounding_fail(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales searched with the importance turned around."""
    monkeypatch.setattr(layers, "mean_squares", lambda x, pool: 1 / mean_squares(x, pool).clamp(min=1e-6) ** 3)
    given: dict[str, Any] = {"calibrate": "scales", "calibration_text": [text], "context": 64, "prefill_chunk": 32}
    with pytest.raises(BadInput, match="checkpoint, KL against rounding"):
        export_pte("phi4-tiny", out=tmp_path / "bad.pte", **given)
    assert not list(tmp_path.iterdir())


def test_calibrates_and_exports_in_one_go(tmp_path: Path, text: Path) -> None:
    given: dict[str, Any] = {"calibrate": "scales", "calibration_text": [text], "context": 64, "prefill_chunk": 32}
    exported = export_pte("phi4-tiny", out=tmp_path / "tiny.pte", save_quantized=tmp_path / "kept", **given)
    assert exported.manifest["calibration"]["method"] == "scales" and exported.manifest["verification"]["passed"]
    assert exported.manifest["verification"]["checkpoint"] == "phi4-tiny"
    opened = open_quantized(resolve(str(tmp_path / "kept")), Recipe())
    assert KeptWeights(opened).rounds_activations
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"calibration_text": ["nowhere.txt"]}, "nowhere.txt cannot be read: No such file"),
        (
            {"calibration_text": ["short.txt"]},
            r"the text short.txt has \d+ tokens, 16 sequences of 512 are to be cut from it",
        ),
        ({"calibration_text": ["latin.txt"]}, "latin.txt is not text in UTF-8"),
        ({"calibration_text": ["short.txt"], "calibration_sequences": 0}, "--calibration-sequences 0 is below 1"),
        ({"calibration_text": ["short.txt"], "calibrate": "magic"}, "--calibrate magic is none of scales, gptq"),
        ({"calibration_text": ["short.txt"], "calibrate": None}, "--calibration-text is for --calibrate"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("A few words.")
    Path("latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match=sentence):
        quantize("phi4-tiny", out="out", **{"calibrate": "gptq", **flags})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.txt", "short.txt"]


def test_refuses_what_cannot_be_calibrated(kept: Path, text: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"calibrate": "gptq", "calibration_text": [text]}
    with pytest.raises(BadInput, match="already quantized"):
        quantize(str(kept), out=tmp_path / "again", **given)
    with pytest.raises(BadInput, match="--no-quantize leaves none"):
        export_pte("phi4-tiny", out=tmp_path / "float.pte", quantize=False, context=64, prefill_chunk=32, **given)
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="torch finds no CUDA device"):
            make_calibration("gptq", [text], device="cuda")
    assert not list(tmp_path.iterdir())


def test_refuses_a_machine_without_the_memory(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.calibration.calibrate.memory_left", lambda: 500_000_000)
    with pytest.raises(BadInput, match=r"takes about \d+\.\d GB of memory, 0\.5 GB are left"):
        quantize("phi4-tiny", out=tmp_path / "out", calibrate="gptq", calibration_text=[text])
    assert not list(tmp_path.iterdir())


MEMORY = """
import sys
from contextlib import contextmanager
from pathlib import Path
import torch
torch.set_num_threads(1)  # each thread keeps freed memory of its own
from checkpoints.source import resolve
from export.calibration.calibrate import calibrate, memory_needed
from export.calibration.options import Calibration
from export.progress import memory_bytes
from export.quantization.recipe import Recipe

folder, text, out = map(Path, sys.argv[1:])
peak, before = 0, memory_bytes()

@contextmanager
def watch(name, total):
    def look(size):
        global peak
        peak = max(peak, memory_bytes())
    yield look

calibrate(resolve(str(folder)), Recipe(), Calibration("awq-gptq", {"text": text.read_text()}, 2), out, watch)
print(peak)
"""


# What is freed goes back to the system at once: glibc otherwise raises this limit to what was freed before, and how
# much it keeps then depends on the order of threads.
GIVES_BACK = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}


def test_memory_is_that_of_a_layer(text: Path, tmp_path: Path) -> None:
    """Private memory with 2 and with 10 layers of 3.1 million weights, 12.6 MB each in float32."""
    peaks = []
    for layers_count in (2, 10):
        folder = tmp_path / f"{layers_count}"
        synthesize(folder, layers=layers_count, hidden=512, intermediate=1536, heads=4, vocab=2048)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name, folder / name)
        command = [sys.executable, "-c", MEMORY, str(folder), str(text), str(tmp_path / f"{layers_count} kept")]
        run = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=GIVES_BACK
        )
        peaks.append(int(run.stdout))
        assert peaks[-1] < memory_needed(read_config(folder), 2 * 512, threads=1)
    assert peaks[1] - peaks[0] < 12.6e6, peaks  # less than a layer, of eight more


def test_refuses_a_damaged_record(kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(kept, folder)
    record = json.loads((folder / "calibration.json").read_text())
    del record["fidelity"]["nearest"]
    (folder / "calibration.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="calibration.json does not say how the levels were chosen"):
        read_record(folder)


def test_the_command(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--calibrate", "scales", "--calibration-text", str(text), "--calibration-sequences", "1"]
    main(["--checkpoint", "phi4-tiny", "--out", str(tmp_path / "out"), *flags])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
