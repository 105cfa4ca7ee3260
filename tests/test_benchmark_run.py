"""benchmarks.run: every engine does the steps it is said to do, and what it cannot do is said in a sentence."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import drafts
from benchmarks.engines import Llama, Ours, prepare
from benchmarks.run import Plan, compare, contestants, main
from benchmarks.trial import Trial, in_child
from checkpoints.errors import BadInput
from export.engine.chat_template import chat_prompt
from export.engine.native import NativeEngine
from export.engine.session import Session
from export.engine.tokenizer import runner_ids
from export.pte import export_pte
from tests.engine.native import need_compiler

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def long_pte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi4-tiny with room for the texts."""
    out = tmp_path_factory.mktemp("long") / "long.pte"
    return export_pte("phi4-tiny", out=out, context=1024, prefill_chunk=32, verify=False).path


def test_two_engines_of_one_file(tiny_pte: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_compiler()
    line = [str(tiny_pte), "--positions", "8,100", "--memory-at", "16,200,5000", "--prompt", "300", "--rounds", "1"]
    assert main([*line, "--work", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ours, wheel = report["results"]
    assert (ours["engine"], wheel["engine"], report["drafts"]) == ("ours", "wheel", {})
    for result in (ours, wheel):
        median = result["median"]
        assert {key for key in median if key.startswith("decode")} == {"decode_ms_at_8", "decode_ms_at_100"}
        assert (median["context_tokens"], median["chunk_tokens"], median["prompt_tokens"]) == (256, 32, 256)
        assert result["skipped"] == [
            "tiny.pte holds 256 tokens: nothing is measured at 5000",
            "tiny.pte holds 256 tokens: the prompt of 300 is cut to that",
        ]
        assert all(value > 0 for key, value in median.items() if key.endswith("_per_s") or key.startswith("decode"))
    assert set(ours["ratio_to_first"].values()) == {1.0}
    assert wheel["median"]["first_load_ms"] == wheel["median"]["load_ms"]  # it packs weights every time
    # Packed weights and the cache of keys and values are in private memory here, and not there.
    assert wheel["median"]["private_bytes_loaded"] > ours["median"]["private_bytes_loaded"] + 2**20
    assert not list(tmp_path.iterdir())


def test_ratios_are_those_within_a_round(tiny_pte: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter((2.0, 3.0, 10.0, 40.0, 4.0, 8.0))  # first file, second file, first file, …
    monkeypatch.setattr("benchmarks.run.round_of", lambda trial: {"load_ms": next(took), "skipped": []})
    report = compare([tiny_pte, tiny_pte], Plan(rounds=3, engines=("wheel",)))
    first, second = report["results"]
    assert [trial["load_ms"] for trial in second["trials"]] == [3.0, 40.0, 8.0]
    assert (first["median"]["load_ms"], second["median"]["load_ms"]) == (4.0, 8.0)
    assert second["ratio_to_first"]["load_ms"] == 2.0  # of 1.5, 4 and 2


def test_a_file_that_cannot_be_measured_is_named(tiny_pte: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pte"
    damaged.write_bytes(tiny_pte.read_bytes()[:2000])
    trial = Trial(str(damaged), "wheel", str(tmp_path), (8,), (), 2, 16, 256)
    with pytest.raises(BadInput, match=r"damaged.pte could not be measured by wheel \("):
        in_child(trial)


def test_what_cannot_be_measured(tiny_pte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "model.gguf"
    other.write_bytes(b"")
    assert contestants([tiny_pte, other], ("ours", "wheel"))[2] == (other, "llama")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for files, flags, said in (
        ([tmp_path / "none.pte"], [], "none.pte does not exist"),
        ([other], [], "llama-cpp-python is not installed"),
        ([tiny_pte], ["--engines", "ours,fast"], "--engines has fast, not ours or wheel"),
        ([tiny_pte], ["--rounds", "0"], "--rounds 0 is not at least 1"),
        ([tiny_pte], ["--positions", "0,5"], "--positions 0,5: below 1"),
        ([tiny_pte], ["--work", str(other)], "is not a folder"),
        ([tiny_pte], ["--draft-model", str(tmp_path / "x.pte")], "x.pte does not exist"),
    ):
        with pytest.raises(BadInput, match=said):
            main([*map(str, files), *flags])


def test_forced_texts_are_written_whole(long_pte: Path, tmp_path: Path) -> None:
    need_compiler()
    prepare("ours")
    engine = Ours(long_pte, tmp_path / "packed")
    prompt, wanted = [5, 6, 7, 8, 9, 5, 6, 7], [8, 9, 5, 6, 1, 2, 3, 1, 2, 3, 1]
    for most in (0, 4):
        told = drafts._write(engine, prompt, wanted, most)
        # The last token of all has been written and not been fed.
        assert engine._engine.tokens() == [*prompt, *wanted][:-1]
        assert told["steps"] + told["accepted"] == len(wanted) - 1
        assert (told["drafted"] > told["accepted"] > 0) if most else told["drafted"] == 0
    engine.close()


def test_drafts_of_three_texts(long_pte: Path, tmp_path: Path) -> None:
    need_compiler()
    tasks = drafts.measure_all(long_pte, None, 7, 1, tmp_path, lambda line: None)["forced"]["tasks"]
    assert list(tasks) == ["summary", "edit", "free text"]
    right = {name: task["drafts"]["accepted"] / task["drafts"]["tokens"] for name, task in tasks.items()}
    assert right["edit"] > 0.7 > right["summary"] > right["free text"]


def test_a_model_answers_with_drafts_where_they_can_be_checked(
    long_pte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_compiler()
    found = drafts.answered(long_pte, tmp_path / "packed", 7)
    for task in found.values():
        plain, guessed = task["plain"], task["drafts"]  # phi4-tiny ends each with a few tokens
        assert plain["drafted"] == 0 < plain["steps"] == plain["tokens"] < drafts.ANSWER
        assert 0 < guessed["steps"] == guessed["tokens"] - guessed["accepted"]
        assert plain["tokens_per_s"] > 0 < guessed["tokens_per_s"] and task["same_tokens"]
    assert sum(task["drafts"]["drafted"] for task in found.values()) > 0
    load = NativeEngine.load
    monkeypatch.setattr(NativeEngine, "load", lambda *given: replace(load(*given), logits_positions=1))
    with pytest.raises(BadInput, match=r"long.pte gives the logits of one token a step: it cannot check drafts"):
        drafts.answered(long_pte, tmp_path / "packed", 7)


def test_llama_cpp_computes_the_same_model(tiny_pte: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: uv run --group peers")
    from benchmarks.as_gguf import write_gguf

    tokenizer = tiny_pte.parent / "tokenizer.json"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = runner_ids(tokenizer, chat_prompt(tokenizer.parent, question))
    session = Session(tiny_pte)
    logits = session.step(prompt, 0)
    write_gguf(ROOT / "checkpoints/phi4-tiny", tmp_path / "tiny.gguf")
    engine = Llama(tmp_path / "tiny.gguf", 256)
    engine.feed(prompt[:4], 0)
    engine.feed([1, 2, 3], 4)  # and forgotten again
    engine.feed(prompt[4:], 4)
    ids, others = list(prompt), list(prompt)
    for _ in range(8):
        theirs = engine.logits()
        ids.append(int(logits[-1].argmax()))
        others.append(max(range(len(theirs)), key=theirs.__getitem__))
        logits = session.step(ids[-1:], len(ids) - 1)
        engine.feed(others[-1:], len(others) - 1)
    engine.close()
    assert ids == others
