"""benchmarks.calibration: what is given back is of the first way's loss, turns are turns, sizes are compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import calibration, peer
from benchmarks.calibration import WAYS, main, print_report
from benchmarks.compressed import SCALE, Compressed
from benchmarks.peer import SCRIPT, environment, write_floats
from checkpoints.errors import BadInput
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.source import resolve
from checkpoints.untied import Untied
from checkpoints.weights import SINGLE, open_checkpoint
from export.evaluation.evaluate import Quality
from export.evaluation.scores import Estimate
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantizing
from export.quantization.saved_reader import open_quantized
from export.quantization.saved_writer import save_quantized

TOOK = {"wall_s": 3.0, "cpu_s": 4.0, "private_peak_bytes": 5e9}


def quality(nll: float, kl: float) -> Quality:
    return Quality(Estimate(20.0, 1.0), Estimate(nll, None), Estimate(kl, 0.01), Estimate(0.75, None))


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files are not made, judged as below and timed one millisecond more each time; the order of the timings."""
    timed: list[str] = []
    sizes = iter((1000, 1000, 1200))

    def measured(module: str, *arguments: str) -> dict[str, float]:
        assert module in ("export.quantize", "export.pte")
        return TOOK

    def exported(path: Path) -> dict[str, Any]:
        return {"file": str(path), "bytes": next(sizes), "recipe": {"int8": []}, "mixed": None}

    def judged(models: list[str], checkpoint: str, **given: Any) -> Any:
        assert models[-1] == checkpoint
        given["progress"]("nearest.pte", 3, 12)
        found = [quality(3.5, 0.4), quality(3.3, 0.1), quality(3.25, 0.05), quality(3.0, 0.0)]
        return SimpleNamespace(windows=4, tokens=2044, models=[SimpleNamespace(quality=q) for q in found])

    def round_of(trial: Any) -> dict[str, float]:
        timed.append(Path(trial.file).stem)
        return {"decode_ms_at_64": float(len(timed))}

    monkeypatch.setattr(calibration, "_measured", measured)
    monkeypatch.setattr(calibration, "_exported", exported)
    monkeypatch.setattr(calibration, "evaluate", judged)
    monkeypatch.setattr(calibration, "round_of", round_of)
    return timed


def test_sizes_of_one_recipe_are_compared(patched: list[str], tmp_path: Path) -> None:
    line = ["--ways", "nearest,gptq,mixed", "--extra-bytes", "7%", "--rounds", "3", "--work", str(tmp_path), "--json"]
    with pytest.raises(BadInput, match="nearest and mixed are of one recipe, their files have 1000 and 1200 bytes"):
        main(line)
    assert patched == [], "nothing is timed before the sizes are compared"


def test_a_row_for_each_way(
    patched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "_check_sizes", lambda results: None)
    line = ["--ways", "nearest,gptq,mixed", "--extra-bytes", "7%", "--rounds", "3", "--work", str(tmp_path), "--json"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    nearest, gptq, mixed = report["results"]
    assert mixed["flags"] == ["--calibrate", "awq-gptq", "--extra-bytes", "7%"] and nearest["flags"] == []
    assert (nearest["kl_given_back"], nearest["nll_given_back"]) == (0, 0)
    assert gptq["kl_given_back"] == pytest.approx(0.75) and gptq["nll_given_back"] == pytest.approx(0.4)
    assert mixed["kl_given_back"] == pytest.approx(0.875) and mixed["nll_lost"] == pytest.approx(0.25)
    assert patched == ["nearest", "gptq", "mixed"] * 3, "in turns"
    assert [one["decode_ms"] for one in report["results"]] == [4.0, 5.0, 6.0]
    console = Console(width=130, record=True)
    print_report(report, console)
    text = console.export_text()
    assert "0.1000 ± 0.0100 (75 %)" in text and "1,200" in text and "…" not in text


def test_what_cannot_be_done(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"--ways has magic, not {', '.join((*WAYS, *peer.OBSERVERS))}"):
        main(["--ways", "nearest,magic", "--work", str(tmp_path)])
    with pytest.raises(BadInput, match="--rounds 0 is not at least 1"):
        main(["--rounds", "0"])
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is not an empty folder"):
        main(["--work", str(tmp_path)])


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(BadInput, match="json.tool did not finish .exit code 2.: .*nowhere"):
        calibration._measured("json.tool", "/nowhere.json")


# What llm-compressor leaves, made here: random levels and scales under compressed-tensors' names.
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def quantizing() -> Quantizing:
    return Quantizing(Untied(open_checkpoint(resolve("phi4-tiny").folder)), Recipe())


@pytest.fixture(scope="module")
def theirs(quantizing: Quantizing) -> dict[str, Tensor]:
    draw, tensors = torch.Generator().manual_seed(0), {}
    for name in quantizing.untied.names():
        tensors[name] = quantizing.untied.tensor(name).float().clone()
        if tensors[name].ndim == 2 and name != EMBEDDING:
            rows, columns = tensors[name].shape
            tensors[name] = torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=draw)
            tensors[name + SCALE] = (torch.rand(rows, columns // 32, generator=draw) + 0.01).bfloat16().float()
    return tensors


def saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / SINGLE)
    return folder


def test_levels_and_scales_become_ours_exactly(
    quantizing: Quantizing, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    save_quantized(Compressed(saved(tmp_path / "theirs", theirs), quantizing), tmp_path / "kept")
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(tmp_path / "kept").state_dict()
    for name, levels in theirs.items():
        if name + SCALE in theirs:
            expected = levels.view(len(levels), -1, 32) * theirs[name + SCALE].unsqueeze(-1)
            assert torch.equal(state[name].dequantize(), expected.view(levels.shape)), name
        elif name != EMBEDDING and not name.endswith(SCALE):
            assert torch.equal(state[name], levels), name
    (nearest,) = quantizing.rows(EMBEDDING, 7, 8)
    assert torch.equal(state[EMBEDDING].dequantize()[7:8], nearest.dequantize())  # type: ignore[union-attr]
    again = open_quantized(resolve(str(tmp_path / "kept")), Recipe())
    assert again.recipe == quantizing.recipe and not any("left in float" in note for note in again.notes)


def test_what_our_files_cannot_hold_is_refused(
    quantizing: Quantizing, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    def refused(match: str, **parts: Tensor | None) -> None:
        changed = theirs | {name: part for name, part in (("", None), *parts.items()) if part is not None}
        for name in [name for name, part in parts.items() if part is None]:
            changed.pop(name)
        with pytest.raises(BadInput, match=match):
            save_quantized(Compressed(saved(tmp_path / "theirs", changed), quantizing), tmp_path / "kept")
        assert [path.name for path in tmp_path.iterdir()] == ["theirs"]

    def put(name: str, row: int, value: float) -> dict[str, Tensor]:
        tensor = theirs[name].clone()
        tensor[row, -1] = value
        return {name: tensor}

    for level in (8, -9):
        refused(rf"theirs: {DOWN} has a level outside \[-8, 7\] in row 300", **put(DOWN, 300, level))
    refused(f"{HEAD} has a scale that is not a torch.bfloat16 in row 2047", **put(HEAD + SCALE, 2047, 0.1))
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        refused(f"{DOWN} has a scale that is not a positive number in row 3", **put(DOWN + SCALE, 3, scale))
    refused(f"{DOWN} is torch.float32, not torch.int8", **{DOWN: theirs[DOWN].float()})
    wide = theirs[DOWN + SCALE][:, ::2].contiguous()
    refused(rf"{DOWN}_scale has shape \(384, 10\), 8da4w g32, .* makes it \(384, 20\)", **{DOWN + SCALE: wide})
    refused(f"theirs has no tensor {HEAD}_scale", **{HEAD + SCALE: None})
    refused("theirs has no tensor model.norm.weight", **{"model.norm.weight": None})


def test_floats_are_the_checkpoints(quantizing: Quantizing, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_floats(quantizing.untied, tmp_path / "floats")
    written, source = load_file(tmp_path / "floats" / SINGLE), resolve("phi4-tiny").folder
    original = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert written.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in written.items())
    assert json.loads((tmp_path / "floats" / "config.json").read_text())["tie_word_embeddings"] is False
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    logits = [AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (source, tmp_path / "floats")]
    assert torch.equal(*logits)


def test_the_script_stands_alone() -> None:
    done = subprocess.run([sys.executable, "-I", str(SCRIPT), "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "--observer" in done.stdout, done.stderr


def test_an_environment_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("UV", raising=False)
    (tmp_path / "work").mkdir()
    with pytest.raises(BadInput, match="uv, which installs llmcompressor==.* is not on the PATH"):
        main(["--ways", "nearest", "--peer", "--work", str(tmp_path / "work")])
    assert not any((tmp_path / "work").iterdir()), "known before the first row is made"
    monkeypatch.setenv("UV", sys.executable)  # which takes `venv` for a file
    with pytest.raises(BadInput, match="cannot be installed: uv venv .* has exit code 2"):
        environment()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_peers_are_rows_like_others(
    patched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def quantize(checkpoint: str, observer: str, kept: Path) -> dict[str, Any]:
        asked.append((observer, kept))
        return {"quantize": TOOK, "peer": {"packages": {"llmcompressor": "0.14"}, "fell_back": ["1/17 modules"]}}

    monkeypatch.setattr(calibration, "_check_sizes", lambda results: None)
    monkeypatch.setattr(peer, "environment", lambda: tmp_path)
    monkeypatch.setattr(peer, "quantize", quantize)
    assert main(["--ways", "nearest,peer", "--peer", "--rounds", "1", "--work", str(tmp_path)]) == 0
    kept = [(observer, tmp_path / way / "kept") for way, observer in peer.OBSERVERS.items()]
    assert asked == kept and patched == ["nearest", "peer", "peer-mse"]
    told, progress = capsys.readouterr()
    assert "judge nearest.pte: run 4 of 12" in progress
    assert "peer-mse: llmcompressor 0.14; scales by memoryless_mse\n1/17 modules\n" in told
