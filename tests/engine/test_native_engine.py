"""The C++ engine: the tokens of the Python runtime, and what it refuses and when it stops."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from checkpoints.errors import BadInput
from export.engine.chat_template import chat_prompt
from export.engine.native import End, EngineFailed, Loaded, NativeEngine, Packing, Sampling, Stopped
from export.engine.session import Session
from export.engine.tokenizer import load_tokenizer, runner_ids
from export.evaluation.models import FileModel, RunningFile
from export.generate import generate
from tests.engine.native import COUNT, GREEDY, PROMPT, pool
from tests.engine.test_generate import ANSWER, export_script

# ---- equal to the Python runtime

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("packing", list(Packing), ids=lambda packing: packing.name)
def test_answers_are_those_of_export_generate(
    packing: Packing, chunk: int, engine: NativeEngine, tiny_pte: Path, packed: Path, tmp_path: Path
) -> None:
    folder = {Packing.UNPACKED: None, Packing.PACKED: tmp_path / "new", Packing.REUSED: packed}[packing]
    loaded = engine.load(tiny_pte, folder, prefill_chunk=chunk)
    assert (loaded.packing, loaded.prefill_chunk) == (packing, min(chunk, 32))
    assert (loaded.packed_bytes > 0) == (packing != Packing.UNPACKED) == (loaded.packed_note == "")
    for question in ("What is the capital of France?", "How do you say thank you in German?"):
        prompt = chat_prompt(tiny_pte.parent, [{"role": "user", "content": question}])
        found = engine.generate(runner_ids(tiny_pte.parent / "tokenizer.json", prompt))
        wanted = generate(tiny_pte, question)
        assert (found.token_ids, found.end == End.TOKEN) == (wanted.token_ids, wanted.ended)


@pytest.mark.parametrize("chunk", [1, 3, 16])
@pytest.mark.parametrize("folder", [None, "packed"])
def test_logits_are_those_of_the_python_runtime(
    folder: str | None, chunk: int, engine: NativeEngine, other_pte: Path, tmp_path: Path
) -> None:
    session = Session(other_pte)
    loaded = engine.load(other_pte, tmp_path / folder if folder else None, prefill_chunk=chunk)
    for start in range(0, len(PROMPT), chunk):
        part = PROMPT[start : start + chunk]
        found = engine.feed(PROMPT[: start + len(part)], loaded.vocab_size)
        np.testing.assert_array_equal(found, session.step(part, start)[-1].numpy())


def test_rows_of_logits_are_those_of_the_python_runtime(engine: NativeEngine, tiny_pte: Path, packed: Path) -> None:
    model = RunningFile(FileModel(tiny_pte))
    loaded = engine.load(tiny_pte, packed)
    ids = (PROMPT * 8)[:90]
    for count, rows in ((90, 1), (90, 20), (70, 70), (85, 9)):
        held = len(engine.tokens())
        found = engine.feed_rows(ids[:count], rows, loaded.vocab_size)
        np.testing.assert_array_equal(found, model.last_logits(ids[:count], rows, min(held, count - rows)).numpy())
        assert engine.tokens() == ids[:count]
    for rows in (0, 91):
        with pytest.raises(BadInput, match=f"logits of {rows} tokens are asked for, of 90"):
            engine.feed_rows(ids, rows, loaded.vocab_size)


def test_characters_come_whole_and_stop_texts_never(engine: NativeEngine, tiny_pte: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_pte.parent / "tokenizer.json")
    prompt, ids, decode = [64, 65, 66], tokenizer.encode(ANSWER), tokenizer.decode
    engine.load(export_script(tmp_path / "says.pte", [0, 0, *ids, 2040, 0, 0]))  # ANSWER, whatever it is told
    for stops, wanted in {
        (): ANSWER,
        ("nothing of it",): ANSWER,
        ("\U0001f3fd",): ANSWER.partition("\U0001f3fd")[0],  # the second half of one emoji
        ("好", ", "): ANSWER.partition(", ")[0],
        (ANSWER[:3],): "",
        (ANSWER + "!",): ANSWER,  # held back to the end
    }.items():
        pieces: list[str] = []
        answer = engine.generate(prompt, Sampling(stop_texts=stops), decode, pieces.append)
        assert "".join(pieces) == wanted and "\ufffd" not in "".join(pieces)
        assert answer.end == (End.TOKEN if wanted == ANSWER else End.TEXT)
        assert list(answer.token_ids) == ids[: len(answer.token_ids)]
    cut = next(count for count in range(1, len(ids)) if decode(ids[:count]).endswith("\ufffd"))
    pieces = []
    engine.generate(prompt, Sampling(max_new_tokens=cut), decode, pieces.append)
    assert "".join(pieces) == decode(ids[:cut])


def test_the_answer_ends_as_the_file_and_the_caller_say(
    engine: NativeEngine, tiny_pte: Path, expected: list[int]
) -> None:
    engine.load(tiny_pte)
    assert len(set(expected)) > 8
    stop = expected[7]
    answer = engine.generate(PROMPT, Sampling(stop_ids=(stop,)))
    assert list(answer.token_ids) == expected[: expected.index(stop)] and answer.end == End.TOKEN
    answer = engine.generate(PROMPT, Sampling(max_new_tokens=3))
    assert list(answer.token_ids) == expected[:3] and answer.end == End.LIMIT and len(answer.token_ms) == 3
    answer = engine.generate(PROMPT, Sampling(ignore_eos=True))
    assert len(answer.token_ids) == 256 - len(PROMPT) and answer.end == End.CONTEXT


def test_only_what_differs_is_fed_and_rewinding_changes_no_answer(
    engine: NativeEngine, tiny_pte: Path, expected: list[int]
) -> None:
    engine.load(tiny_pte)
    assert engine.generate(PROMPT, GREEDY).reused_tokens == 0
    assert engine.tokens() == PROMPT + expected[:-1]
    again = engine.generate(PROMPT, GREEDY)
    assert (again.reused_tokens, list(again.token_ids)) == (len(PROMPT) - 1, expected)
    turn = PROMPT + expected + [10, 65, 66]
    assert engine.generate(turn, GREEDY).reused_tokens == len(PROMPT) + len(expected) - 1
    engine.rewind(5)
    after = engine.generate(PROMPT, GREEDY)
    assert (after.reused_tokens, list(after.token_ids)) == (5, expected)
    fork = engine.generate(PROMPT[:9] + [65], GREEDY)
    assert fork.reused_tokens == 9
    engine.release()
    assert engine.tokens() == []
    assert engine.generate(PROMPT[:9] + [65], GREEDY).token_ids == fork.token_ids


def test_planned_memory_is_not_touched_before_it_is_used_and_given_back(other_pte: Path) -> None:
    with pool() as processes:
        loaded, used, released = processes.submit(memory_of_a_long_context, other_pte).result()
    assert loaded.planned_bytes > 2 * 32e6
    assert loaded.private_bytes < loaded.planned_bytes / 8
    assert used > 2e6 and released < used / 2


def memory_of_a_long_context(model: Path) -> tuple[Loaded, int, int]:
    from export.engine.native import memory_use

    with NativeEngine() as engine:
        loaded = engine.load(model)
        before = memory_use()["anonymous"]
        engine.feed([5] * 4096, loaded.vocab_size)
        used = memory_use()["anonymous"] - before
        engine.release()
        return loaded, used, memory_use()["anonymous"] - before


# ---- stopping, and refusals


def test_stop_ends_a_load_and_leaves_nothing(engine: NativeEngine, tiny_pte: Path, tmp_path: Path) -> None:
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        assert 0 < done <= total == tiny_pte.stat().st_size
        if calls == 5:
            engine.stop()

    with pytest.raises(Stopped):
        engine.load(tiny_pte, tmp_path / "cache", on_progress=progress)
    assert calls == 5
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(BadInput, match="no model is loaded"):
        engine.tokens()
    assert engine.load(tiny_pte, tmp_path / "cache").packing == Packing.PACKED


def test_stop_from_another_thread_ends_an_answer_and_a_prompt(engine: NativeEngine, other_pte: Path) -> None:
    engine.load(other_pte, prefill_chunk=1)
    prompt = [5] * 8000  # seconds, a token at a time
    done = threading.Event()

    def stop() -> None:
        while not done.wait(0.05):
            engine.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    answer = engine.generate(prompt, GREEDY)
    done.set()
    stopper.join()
    assert (answer.end, answer.token_ids) == (End.STOPPED, ()) and len(engine.tokens()) < len(prompt)
    heard: list[int] = []

    def listen(token: int) -> None:
        heard.append(token)
        if len(heard) == 3:
            engine.stop()

    answer = engine.generate(PROMPT, Sampling(ignore_eos=True), on_token=listen)
    assert answer.end == End.STOPPED and list(answer.token_ids) == heard and len(heard) == 3


def test_one_call_at_a_time_and_errors_of_callbacks_come_out(engine: NativeEngine, tiny_pte: Path) -> None:
    engine.load(tiny_pte)
    for call in (engine.tokens, engine.release, engine.close, lambda: engine.generate(PROMPT)):
        with pytest.raises(EngineFailed, match="busy with another call|within its callbacks"):
            engine.generate(PROMPT, GREEDY, on_token=lambda token, call=call: call())  # type: ignore[misc]
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, GREEDY, on_token=lambda token: signal.raise_signal(signal.SIGINT))
    assert len(engine.generate(PROMPT, GREEDY).token_ids) == COUNT


@pytest.mark.parametrize(
    ("prompt", "changes", "sentence"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * 256, {}, "the prompt has 256 tokens, .*tiny.pte has a context of 256"),
        ([1, 2048], {}, "token 2048 of the prompt is outside the vocabulary of 2048"),
        ([-1], {}, "token -1 of the prompt is outside"),
        ([1], {"temperature": -1.0}, "temperature -1.0+ is out of range"),
        ([1], {"temperature": float("nan")}, "temperature nan is out of range"),
        ([1], {"top_p": 1.5}, "top_p 1.50* is out of range"),
        ([1], {"min_p": -0.5}, "min_p -0.50* is out of range"),
        ([1], {"top_k": -1}, "not below 0"),
        ([1], {"stop_texts": ("a",)}, "stop_texts need decode"),
    ],
)
def test_refusals(
    prompt: list[int], changes: dict[str, object], sentence: str, engine: NativeEngine, tiny_pte: Path
) -> None:
    engine.load(tiny_pte)
    with pytest.raises(BadInput, match=sentence):
        engine.generate(prompt, Sampling(**changes))  # type: ignore[arg-type]
    assert engine.tokens() == []


def test_files_that_are_no_models(engine: NativeEngine, tiny_pte: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.pte"
    with pytest.raises(BadInput, match="x.pte cannot be read: No such file"):
        engine.load(file)
    file.write_text("hello, this is no program")
    with pytest.raises(BadInput, match="x.pte is not an ExecuTorch program"):
        engine.load(file, tmp_path / "cache")
    file.write_bytes(tiny_pte.read_bytes()[:100_000])
    with pytest.raises(BadInput, match="x.pte: ExecuTorch's runtime refuses it"):
        engine.load(file)
    assert not list((tmp_path / "cache").iterdir())


def with_threads(model: Path) -> tuple[int, list[int], int, list[int], str]:
    with NativeEngine() as other:
        with NativeEngine() as engine:
            one = engine.load(model, threads=1).threads
            first = list(engine.generate(PROMPT, GREEDY).token_ids)
            with pytest.raises(BadInput) as refusal:
                other.load(model, threads=2)
        two = other.load(model, threads=2).threads
        return one, first, two, list(other.generate(PROMPT, GREEDY).token_ids), str(refusal.value)


def test_threads_are_set_and_stay_while_an_engine_is_loaded(tiny_pte: Path, expected: list[int]) -> None:
    with pool() as processes:
        one, first, two, second, refusal = processes.submit(with_threads, tiny_pte).result()
    assert (one, two) == (1, 2) and first == second == expected
    assert refusal == "threads: 2 while another engine is loaded with 1"
