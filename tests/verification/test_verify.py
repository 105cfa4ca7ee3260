"""export.verify: its reference is transformers, right files pass it, and files wrong in one thing do not."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput, run
from checkpoints.roles import EMBEDDING
from checkpoints.source import resolve
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.engine.session import Session
from export.models.phi3.decoder import rope_tables
from export.pte import export_pte
from export.ptefile.reader import PteFile, open_pte
from export.ptefile.weights import FileWeights
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantizing, Rounded
from export.quantize import quantize
from export.subprocess_call import Child, ChildDied
from export.verification import checks
from export.verification import verify as verify_module
from export.verification.compare import Report, plan
from export.verify import main, verify
from tests.reference.test_layerwise import near_checkpoint

TINY = resolve("phi4-tiny").folder
CONTEXT = 512


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi4-tiny as usual: 8da4w, bfloat16 cache, short factors."""
    out = tmp_path_factory.mktemp("quantized") / "tiny.pte"
    return export_pte("phi4-tiny", out=out, context=CONTEXT, prefill_chunk=64, verify=False).path


@pytest.fixture(scope="module")
def near(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return near_checkpoint(tiny_folder, tmp_path_factory.mktemp("near") / "near")


@pytest.fixture(scope="module")
def far(near: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`near` in float32 with logits of all positions, made for 256 tokens: long factors."""
    options: dict[str, Any] = {"quantize": False, "kv_cache": "fp32", "full_logits": True}
    out = tmp_path_factory.mktemp("far") / "far.pte"
    return export_pte(str(near), out=out, context=256, prefill_chunk=32, verify=False, **options).path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run files in this process, which spares the imports of another."""

    class Here(nullcontext[Any]):
        def __init__(self, imports: str = "") -> None:
            super().__init__(self)

        def start(self, function: Any, *args: Any) -> Any:
            found = function(*args)
            return SimpleNamespace(done=lambda: False, result=lambda: found)

    monkeypatch.setattr(verify_module, "Child", Here)


# right files


def test_weights_in_a_file_are_those_torchao_makes(quantized: Path) -> None:
    untied = Untied(open_checkpoint(TINY))
    weights = FileWeights(open_pte(quantized), untied.config)
    assert weights.recipe() == Recipe()
    quantizing = Quantizing(untied, Recipe())
    for name in untied.names():
        rows = torch.cat([piece.values for piece in weights.pieces(name)])
        made = quantizing.rows(name, 0, untied.shape(name)[0])
        expected = torch.cat([piece.dequantize() if isinstance(piece, Rounded) else piece for piece in made])
        assert torch.equal(rows, expected), name
    table = torch.cat([piece.values for piece in weights.pieces(EMBEDDING)])
    assert torch.equal(weights.embedding_rows([7, 0, 2047]), table[[7, 0, 2047]])


def test_a_mixed_file_passes_and_another_mixture_fails(tmp_path: Path, here: None) -> None:
    recipe = Recipe(int8=("0.mlp.down_proj", "2.self_attn.qkv_proj", "2.self_attn.o_proj"))
    file = export_pte(
        "phi4-tiny",
        out=tmp_path / "mixed.pte",
        context=128,
        prefill_chunk=32,
        int8=["0.mlp.down_proj", "2.self_attn"],
        verify=False,
    ).path
    weights = FileWeights(open_pte(file), Untied(open_checkpoint(TINY)).config)
    assert weights.recipe() == recipe
    report = verify(file, "phi4-tiny", tokens=100)
    assert report.passed and report.recipe == str(recipe)
    kept = quantize("phi4-tiny", out=tmp_path / "kept", int8=["0.mlp.down_proj"])
    with pytest.raises(
        BadInput, match="is quantized already, as .* int8 0.mlp.down_proj: it cannot be exported as .* and 2 more"
    ):
        verify(file, str(kept))

    weights.storage["layers.2.attention.wk.weight"] = weights.storage["layers.1.attention.wk.weight"]
    with pytest.raises(
        BadInput, match=r"attention.wk.weight has 4 bits, other rows of .*2.self_attn.qkv_proj.weight have 8"
    ):
        weights.recipe()


def test_a_right_file_passes(quantized: Path, here: None) -> None:
    report = verify(quantized, "phi4-tiny", tokens=100)
    assert report.passed and not report.failures and report.rotary_factors == "short" and report.tokens == 100
    measured = {check.name: check.measured for check in report.checks}
    assert 0.49 < measured["weights, levels"] < 0.53
    assert measured["weights, float32"] == 0
    assert 0.003 < measured["logits, decode"] < 0.02
    assert abs(measured["rotary factors"]) < 0.1
    assert {"logits, prefill by 64", "decode = prefill in odd pieces"} < measured.keys()
    assert report.quality.positions == 100 and report.quality.perplexity_positions == 100
    assert 0.005 < report.quality.kl_mean_nats < 0.1 and report.quality.top1_agreement > 0.8
    assert abs(report.quality.perplexity_change_percent) < 10


def test_a_float_file_with_all_logits_passes_beyond_its_first_factors(far: Path, near: Path, here: None) -> None:
    report = verify(far, str(near), long=True, tokens=70)
    assert report.passed and report.rotary_factors == "long" and report.recipe == "float32"
    for check in report.checks:
        if check.unit == "relative":
            assert check.measured < 1e-5, check
    beyond = next(check for check in report.checks if check.name == "logits, beyond 64")
    assert beyond.detail == "14 positions"  # two chunks of 32 less 6, and 12 steps over 58 … 69
    assert next(c for c in report.checks if c.name == "logits, prefill by 32").detail == "70 positions"


def test_no_file_may_lose_a_nat_whatever_explains_it() -> None:
    def lost(nats: float, perplexity: float = 10.0) -> checks.Quality:
        return checks.Quality(40, nats, nats, 0.5, 39, perplexity, 20.0, 100.0)

    def passes(measured: checks.Quality, weights: float, roundings: float) -> bool:
        return checks.original_weights(measured, lost(weights), lost(roundings), 2048).passed

    assert passes(lost(0.57), 0.55, 0.01)
    assert not passes(lost(0.8), 0.55, 0.001), "2.4 times as much was once right"
    assert not passes(lost(1.3), 1.3, 0.01)
    assert passes(lost(1.3, perplexity=3000.0), 1.3, 0.01), "random weights know nothing that they could lose"
    assert not passes(lost(1.3, perplexity=3000.0), 0.55, 0.01)


def test_short_in_a_process_of_its_own(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(quantized), "--checkpoint", "phi4-tiny", "--short", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["tokens"] == 40 and report["quality"]["positions"] == 23


def test_the_table(quantized: Path, here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 8, encoding="utf-8")
    flags = [str(quantized), "--checkpoint", "phi4-tiny", "--short", "--tokens", "20"]
    assert main([*flags, "--text", str(text)]) == 0
    out = capsys.readouterr().out
    assert "passed" in out and "rotary factors" in out and "perplexity" in out and "FAIL" not in out


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize(("count", "chunk", "context"), [(48, 256, 4096), (2, 2, 2), (100, 7, 100), (128, 600, 4096)])
def test_plan_feeds_all_tokens_within_chunks(short: bool, count: int, chunk: int, context: int) -> None:
    for feed in plan(count, chunk, context, short):
        assert count <= sum(feed.calls) <= context
        assert all(0 < call <= chunk for call in feed.calls)


def test_a_checkpoint_that_is_quantized_already(quantized: Path, here: None, tmp_path: Path) -> None:
    """Its weights must be found unchanged, so a single step is too much."""
    folder = quantize("phi4-tiny", out=tmp_path / "kept")
    report = verify(quantized, str(folder), short=True)
    levels = next(check for check in report.checks if check.name == "weights, levels")
    assert report.passed and levels.measured < 1e-4
    wrong = verify(changed(quantized, tmp_path / "wrong.pte", one_step), str(folder), short=True)
    assert failed(wrong) == {"weights, levels"}


# wrong files

Change = Callable[[bytearray, PteFile, ModelConfig], None]


def flip_nibbles(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    """One group of 32 weights."""
    start = file.parts["layers.2.feed_forward.w3.weight"][0] + 64
    data[start : start + 16] = bytes(byte ^ 0x44 for byte in data[start : start + 16])


def one_step(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    """One weight, to the next level."""
    at = file.parts["layers.0.attention.wk.weight"][0] + 1000
    data[at] += 1 if data[at] & 15 < 15 else -1


def double_a_scale(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    start = file.parts["layers.1.attention.wo.scale"][0] + 10
    scale = torch.frombuffer(data, dtype=torch.bfloat16, count=1, offset=start)
    scale *= 2


def coarser_group(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    """Twice the scale and half the levels: each weight is still the nearest level, of too coarse a grid."""
    double_a_scale(data, file, config)
    start = file.parts["layers.1.attention.wo.weight"][0] + 5 * 16
    for at in range(start, start + 16):
        low, high = (round(((data[at] >> shift & 15) - 8) / 2) + 8 for shift in (0, 4))
        data[at] = low | high << 4


def scale_is_nan(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    start = file.parts["tok_embeddings.scale"][0]
    data[start : start + 4] = b"\0\0\xc0\x7f"


def one_embedding(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    """One element of a token that no text uses."""
    start = file.parts["tok_embeddings.weight"][0] + 2045 * config.hidden_size
    data[start] = (data[start] + 9) % 256


def one_norm(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    data[file.parts["layers.3.ffn_norm.weight"][0] + 2] ^= 1


def exchange(data: bytearray, one: tuple[int, int], other: tuple[int, int]) -> None:
    assert one[1] == other[1] and one != other
    (a, size), (b, _) = one, other
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def exchange_layers(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    for name, place in file.parts.items():
        if name.startswith("layers.0."):
            exchange(data, place, file.parts[name.replace("layers.0.", "layers.1.")])


def exchange_graphs(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    """The graph asks for layer 1's feed-forward in layer 0 and the other way round; all weights are right."""
    exchange(data, file.delegates[2], file.delegates[5])


def put_rope(data: bytearray, config: ModelConfig, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    tables = rope_tables(config, CONTEXT)
    for old, new in zip(tables, change(*tables), strict=True):
        start = data.index(old.numpy().tobytes())
        data[start : start + old.nbytes] = new.contiguous().numpy().tobytes()


def long_factors(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    put_rope(
        data, config, lambda *_: rope_tables(dataclasses.replace(config, short_factor=config.long_factor), CONTEXT)
    )


def no_attention_factor(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    put_rope(data, config, lambda cos, sin: (cos / config.attention_factor, sin / config.attention_factor))


def shifted_positions(data: bytearray, file: PteFile, config: ModelConfig) -> None:
    """From position 64 on as if one token were skipped: wrong only across the border of a chunk."""
    put_rope(data, config, lambda *tables: tuple(torch.cat([t[:64], t[65:], t[-1:]]) for t in tables))  # type: ignore[return-value]


WRONG: dict[Change, str] = {
    flip_nibbles: "weights, levels",
    double_a_scale: "weights, levels",
    coarser_group: "weights, scales",
    scale_is_nan: "weights, levels",
    one_embedding: "weights, levels",
    one_norm: "weights, float32",
    exchange_layers: "weights, levels",
    exchange_graphs: "logits, prefill and decode",
    long_factors: "rotary factors",
    no_attention_factor: "logits, prefill and decode",
}


def changed(file: Path, out: Path, change: Change) -> Path:
    opened, data = open_pte(file), bytearray(file.read_bytes())
    change(data, opened, dataclasses.replace(read_config(TINY), tie_word_embeddings=False))
    assert data != file.read_bytes()
    out.write_bytes(data)
    return out


def failed(report: Report) -> set[str]:
    assert report.passed == (not report.failures)
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize(("change", "check"), WRONG.items(), ids=[change.__name__ for change in WRONG])
def test_a_wrong_file_fails_even_the_short_verification(
    change: Change, check: str, quantized: Path, here: None, tmp_path: Path
) -> None:
    report = verify(changed(quantized, tmp_path / "wrong.pte", change), "phi4-tiny", short=True)
    assert check in failed(report)
    if check == "logits, prefill and decode":
        assert not any(name.startswith("weights") for name in failed(report))


def test_positions_wrong_after_a_chunk_fail(quantized: Path, here: None, tmp_path: Path) -> None:
    report = verify(changed(quantized, tmp_path / "wrong.pte", shifted_positions), "phi4-tiny")
    assert "logits, decode" in failed(report)


def test_long_factors_are_told_from_short_in_a_long_file_too(
    far: Path, near: Path, here: None, tmp_path: Path
) -> None:
    config, data = read_config(near), bytearray(far.read_bytes())
    wrong = dataclasses.replace(config, long_factor=config.short_factor)
    for old, new in zip(rope_tables(config, 256), rope_tables(wrong, 256), strict=True):
        start = data.index(old.numpy().tobytes())
        data[start : start + old.nbytes] = new.numpy().tobytes()
    out = tmp_path / "wrong.pte"
    out.write_bytes(data)
    assert {"rotary factors", "logits, prefill and decode"} <= failed(verify(out, str(near), short=True))


def test_the_weights_of_another_checkpoint_fail(quantized: Path, here: None, tmp_path: Path) -> None:
    """Same shapes, other values: exit code 1, and JSON without numbers that JSON does not have."""
    folder = Path(shutil.copytree(TINY, tmp_path / "other"))
    checkpoint = open_checkpoint(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    weight = checkpoint.tensor("model.layers.0.mlp.down_proj.weight").view(torch.uint8).numpy().tobytes()
    start = data.index(weight)
    data[start : start + 768] = data[start + 768 : start + 1536]
    (folder / "model.safetensors").write_bytes(data)
    report = verify(quantized, str(folder), short=True)
    assert failed(report) >= {"weights, levels"}
    assert "layers.0.mlp.down_proj row" in report.failures[0]


def test_a_failure_is_exit_code_1(
    quantized: Path, here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = changed(quantized, tmp_path / "wrong.pte", scale_is_nan)
    flags = [str(wrong), "--checkpoint", "phi4-tiny", "--short"]
    assert main([*flags, "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=lambda constant: pytest.fail(constant))
    assert not report["passed"] and report["failures"]
    assert main(flags) == 1
    assert "FAIL" in capsys.readouterr().out


# what is not a file of this model


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "not an ExecuTorch program"), (b"GGUF" * 100, "not an ExecuTorch program"), ("cut", "is cut short")],
    ids=["empty", "other", "cut"],
)
def test_what_is_no_pte_is_one_sentence(
    content: bytes | str, complaint: str, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.pte"
    file.write_bytes(quantized.read_bytes()[:-5000] if isinstance(content, str) else content)
    with pytest.raises(SystemExit) as left:
        run(main, [str(file), "--checkpoint", "phi4-tiny"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert complaint in error and str(file) in error


def test_foreign_programs_and_models_are_refused(
    quantized: Path, tiny_folder: Path, near: Path, far: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"get_vocab_size is 2048, .*config.json says vocab_size 512"):
        verify(quantized, str(tiny_folder))
    with pytest.raises(BadInput, match=r"does not exist|is not a file"):
        verify(tmp_path / "none.pte", "phi4-tiny")
    with pytest.raises(BadInput, match=r"--tokens must be at least 2"):
        verify(quantized, "phi4-tiny", tokens=1)
    with pytest.raises(BadInput, match=r"--long needs a context beyond .* 4096 .* is 512"):
        verify(quantized, "phi4-tiny", long=True)
    (tmp_path / "few.txt").write_text("Few words.", encoding="utf-8")
    with pytest.raises(BadInput, match=r"few\.txt has \d tokens, .* 16 are needed"):
        verify(quantized, "phi4-tiny", text=tmp_path / "few.txt")
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(BadInput, match=r"is not text in UTF-8"):
        verify(quantized, "phi4-tiny", text=tmp_path / "latin.txt")
    with pytest.raises(BadInput, match="no text"):
        verify(quantized, "phi4-tiny", text=tmp_path / "no text")

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "one layer"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 1}))
    with pytest.raises(BadInput, match=r"holds layers\.1\..*, which the model of .* does not have"):
        verify(far, str(folder))
    (folder / "config.json").write_text(json.dumps(raw | {"intermediate_size": 128}))
    with pytest.raises(BadInput, match=r"which no recipe explains for 128 x 64 elements"):
        verify(far, str(folder))


def test_a_program_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    from executorch.exir import to_edge

    program = torch.export.export(nn.ReLU(), (torch.ones(2),), strict=False)
    file = tmp_path / "relu.pte"
    file.write_bytes(to_edge(program).to_executorch().buffer)
    with pytest.raises(BadInput, match=r"relu\.pte has no method get_max_seq_len"):
        verify(file, "phi4-tiny")


# the runtime


def test_a_session_tells_what_it_cannot_do(quantized: Path, tmp_path: Path) -> None:
    session = Session(quantized)
    assert session.constant("get_max_seq_len") == 64 and session.constant("get_eos_ids") == [2040, 2038]
    first = session.step([1, 2, 3], 0)
    kept = first.clone()
    assert first.shape == (3, 2048) and first.dtype == torch.float32
    session.step([4], 3)
    assert torch.equal(first, kept), "logits are the caller's own"
    assert torch.equal(session.step([1, 2, 3], 0), kept), "a new sequence overwrites the old"
    with pytest.raises(BadInput, match=r"no method called get_nothing"):
        session.constant("get_nothing")
    with pytest.raises(BadInput, match=r"fails on 65 tokens at position 0"):
        session.step([1] * 65, 0)
    cut = tmp_path / "cut.pte"
    cut.write_bytes(quantized.read_bytes()[:100_000])
    with pytest.raises(BadInput, match=r"cut\.pte: ExecuTorch's runtime refuses it: .*100000"):
        Session(cut)


CRASH = "import os; os.write(2, b'[op.cpp:7] assert failed\\n\\n'); os._exit(134)"


def in_child(function: Any, *args: Any) -> Any:
    with Child("json") as child:
        return child.start(function, *args).result()


def test_a_crash_of_the_runtime_is_one_sentence(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChildDied, match=r"^\[op\.cpp:7\] assert failed$"):
        in_child(exec, CRASH)

    class Crashing(Child):
        def start(self, function: Any, *args: Any) -> Any:
            return super().start(exec, CRASH)

    monkeypatch.setattr(verify_module, "Child", Crashing)
    with pytest.raises(BadInput, match=r"tiny\.pte: ExecuTorch's runtime crashes on this file \(\[op\.cpp:7\]"):
        verify(quantized, "phi4-tiny", short=True)


def test_leaving_a_child_early_ends_it() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Child("json") as child:
        child.start(time.sleep, 600)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 300, "it waited for the function to end"


def test_results_and_exceptions_of_a_child_come_back() -> None:
    assert in_child(divmod, 7, 3) == (2, 1)
    with pytest.raises(BadInput, match="a sentence"):
        in_child(exec, "from checkpoints.errors import BadInput; raise BadInput('a sentence')")
