"""The C++ engine: the tokens of the Python runtime, whatever became of the packed weights, sessions and threads."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import distribution, version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from checkpoints.errors import BadInput
from export.engine.chat_template import chat_prompt
from export.engine.compiled import compiled
from export.engine.native import CPP as ENGINE
from export.engine.native import End, EngineFailed, Loaded, NativeEngine, Packing, Sampling, Stopped, _library
from export.engine.session import Session
from export.engine.tokenizer import load_tokenizer, runner_ids
from export.generate import generate
from export.pte import export_pte
from export.verification.arm64.toolchain import command, link, missing
from tests.engine.test_generate import ANSWER, export_script
from tests.tools import need

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100, 33, 10]
COUNT = 24
NOBODY = 65534
GREEDY = Sampling(max_new_tokens=COUNT, ignore_eos=True)
CPP = Path(__file__).parent / "cpp"


def greedy(session: Session, prompt: list[int], chunk: int) -> list[int]:
    """COUNT ids by the Python runtime."""
    ids = list(prompt)
    for start in range(0, len(prompt), chunk):
        logits = session.step(prompt[start : start + chunk], start)
    while True:
        ids.append(int(logits[-1].argmax()))
        if len(ids) == len(prompt) + COUNT:
            return ids[len(prompt) :]
        logits = session.step(ids[-1:], len(ids) - 1)


@pytest.fixture(scope="module")
def expected(tiny_pte: Path) -> list[int]:
    return greedy(Session(tiny_pte), PROMPT, 32)


@pytest.fixture(scope="module")
def other_pte(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, other shapes, and a context that plans more memory than all else takes."""
    out = tmp_path_factory.mktemp("other") / "other.pte"
    return export_pte(tiny_folder, out=out, context=1 << 17, prefill_chunk=16, verify=False).path


@pytest.fixture(scope="module")
def packed(tiny_pte: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packed weights of tiny_pte; not to be changed."""
    folder = tmp_path_factory.mktemp("packed") / "cache"
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.PACKED
    return folder


@pytest.fixture
def engine() -> Iterator[NativeEngine]:
    with NativeEngine() as engine:
        yield engine


def load_and_answer(model: Path, folder: Path | None, chunk: int = 0) -> tuple[Loaded, list[int]]:
    with NativeEngine() as engine:
        return engine.load(model, folder, prefill_chunk=chunk), list(engine.generate(PROMPT, GREEDY).token_ids)


def pool(workers: int = 1) -> ProcessPoolExecutor:
    """New processes that only imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["export.engine.session"])
    return ProcessPoolExecutor(workers, context)


# ---- equal to the Python runtime


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


# ---- saved sessions


def test_a_saved_session_goes_on_in_another_engine(
    engine: NativeEngine, tiny_pte: Path, packed: Path, expected: list[int], tmp_path: Path
) -> None:
    engine.load(tiny_pte)
    turn = PROMPT + expected + [10, 65, 66]
    engine.generate(PROMPT, GREEDY)
    engine.save(tmp_path / "session")
    engine.save(tmp_path / "session")  # over its own
    wanted = engine.generate(turn, GREEDY).token_ids
    with NativeEngine() as other:
        other.load(tiny_pte, packed)
        other.generate([9, 8, 7], GREEDY)
        other.restore(tmp_path / "session")
        assert other.tokens() == PROMPT + expected[:-1]
        answer = other.generate(turn, GREEDY)
        assert (answer.token_ids, answer.reused_tokens) == (wanted, len(PROMPT) + len(expected) - 1)
    assert [path.name for path in tmp_path.iterdir()] == ["session"]


def flip(path: Path, at: int = -1000, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for place in range(at, at + count):
        data[place] ^= 0x41
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip, "is a damaged session"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "is a damaged session"),
        (lambda path: os.truncate(path, 0), "is no saved session"),
        (lambda path: path.write_text("a letter to a friend"), "is no saved session"),
        (Path.unlink, "cannot be read: No such file"),
    ],
)
def test_a_damaged_session_is_refused_and_the_own_one_stays(
    damage: Callable[[Path], None], sentence: str, engine: NativeEngine, tiny_pte: Path, tmp_path: Path
) -> None:
    engine.load(tiny_pte)
    engine.generate([9, 8, 7], GREEDY)
    own, path = engine.tokens(), tmp_path / "session"
    engine.save(path)
    damage(path)
    with pytest.raises(BadInput, match=sentence):
        engine.restore(path)
    assert engine.tokens() == own


def sealed(numbers: np.ndarray) -> np.ndarray:
    """These uint64 with the digest that a session ends with."""
    mask, sums = (1 << 64) - 1, [8 * len(numbers), 1, 2, 3]

    def step(lane: int, word: int) -> None:
        product = ((sums[lane] ^ word) * 0x9E3779B97F4A7C15) & mask
        sums[lane] = product ^ product >> 29

    padded = numbers.tolist() + [0] * (-len(numbers) % 4)
    for at, word in enumerate(padded):
        step(at % 4, word)
    for lane in (1, 2, 3):
        step(0, sums[lane])
    step(0, 0)
    return np.append(numbers, np.uint64(sums[0]))


def test_a_session_made_up_to_do_harm_is_refused(engine: NativeEngine, tiny_pte: Path, tmp_path: Path) -> None:
    engine.load(tiny_pte)
    engine.feed([9, 8, 7], 2048)
    engine.save(tmp_path / "session")
    numbers = np.fromfile(tmp_path / "session", np.uint64)
    np.testing.assert_array_equal(sealed(numbers[:-1]), numbers)
    count = 3 + int(numbers[2])  # after magic, identity and the parts; then the tokens and the first stretch
    assert numbers[count : count + 4].tolist() == [3, 9, 8, 7]
    for place, value in ((0, 1 << 61), (0, 300), (1, 1 << 40), (4, 99), (5, 1 << 63), (6, 1 << 63), (6, 1 << 30)):
        changed = numbers[:-1].copy()
        changed[count + place] = value
        sealed(changed).tofile(tmp_path / "session")
        with pytest.raises(BadInput, match="is a damaged session"):
            engine.restore(tmp_path / "session")
        assert engine.tokens() == [9, 8, 7]


def test_sessions_of_other_models_and_foreign_files(
    engine: NativeEngine, tiny_pte: Path, other_pte: Path, tmp_path: Path
) -> None:
    engine.load(other_pte)
    engine.generate([9, 8, 7], GREEDY)
    engine.save(tmp_path / "session")
    engine.load(tiny_pte)
    with pytest.raises(BadInput, match="session of another model than .*tiny.pte"):
        engine.restore(tmp_path / "session")
    (tmp_path / "letter").write_text("to a friend")
    with pytest.raises(BadInput, match="letter exists and is no saved session"):
        engine.save(tmp_path / "letter")
    assert (tmp_path / "letter").read_text() == "to a friend"


# ---- packed weights


def only(folder: Path, suffix: str) -> Path:
    (found,) = folder.glob(f"*{suffix}")
    return found


def flip_in_secret(path: Path) -> None:
    """As the file was, by size and by the times a program can set."""
    before = path.stat()
    flip(path, before.st_size // 2, 4096)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def of_another_model(path: Path) -> None:
    """The file and its check fit each other, but not the name."""
    check = path.with_suffix(".check")
    check.write_text(check.read_text().replace(path.name[:16], "0123456789abcdef"))


def lose_check(path: Path) -> None:
    path.with_suffix(".check").unlink()


def of_another_version(path: Path) -> None:
    for file in (path, path.with_suffix(".check")):
        file.rename(file.with_name(file.name.replace("-1.5.1-", "-1.4.0-")))


def left_partial(path: Path) -> None:
    lose_check(path)
    path.rename(path.with_name(path.name + ".partial"))


FAULT_NAMES = [
    "flipped",
    "secret",
    "cut",
    "foreign",
    "check",
    "digest",
    "gone",
    "unchecked",
    "renamed",
    "stale",
    "partial",
]
FAULTS: list[Callable[[Path], object]] = [
    lambda path: flip(path, path.stat().st_size // 2, 200_000),
    flip_in_secret,
    lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: path.write_bytes(b"of another program" * 100),
    lambda path: path.with_suffix(".check").write_text("nonsense"),
    lambda path: flip(path.with_suffix(".check"), 10),
    Path.unlink,
    lose_check,
    of_another_model,
    of_another_version,
    left_partial,
]


@pytest.mark.parametrize("fault", FAULTS, ids=FAULT_NAMES)
def test_a_faulty_packed_file_is_packed_again(
    fault: Callable[[Path], object], tiny_pte: Path, packed: Path, expected: list[int], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "cache"))
    sound = only(folder, ".packed").read_bytes()
    fault(only(folder, ".packed"))
    (folder / "mine.txt").write_text("not the engine's")
    loaded, found = load_and_answer(tiny_pte, folder)
    assert (loaded.packing, found) == (Packing.PACKED, expected)
    assert only(folder, ".packed").stat().st_size == len(sound)
    assert sorted(path.suffix for path in folder.iterdir()) == [".check", ".packed", ".txt"]
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.REUSED


def test_a_copied_packed_file_is_read_once_and_used(tiny_pte: Path, packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "cache"))
    os.utime(only(folder, ".packed"))
    before = only(folder, ".check").read_text()
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.REUSED
    after = only(folder, ".check").read_text()
    assert after != before and after.split()[:2] == before.split()[:2]
    content = only(folder, ".packed").read_bytes()
    assert load_and_answer(tiny_pte, folder)[0].packing == Packing.REUSED
    assert (only(folder, ".check").read_text(), only(folder, ".packed").read_bytes()) == (after, content)


def killed_while_packing(model: Path, folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    NativeEngine().load(model, folder, on_progress=progress)


def test_a_first_load_that_is_killed_leaves_nothing_that_counts(
    tiny_pte: Path, expected: list[int], tmp_path: Path
) -> None:
    with pool() as processes, pytest.raises(BrokenProcessPool):
        processes.submit(killed_while_packing, tiny_pte, tmp_path / "cache").result()
    (partial,) = (tmp_path / "cache").iterdir()
    assert partial.name.endswith(".packed.partial")
    loaded, found = load_and_answer(tiny_pte, tmp_path / "cache")
    assert (loaded.packing, found) == (Packing.PACKED, expected)
    assert not partial.exists()


def test_two_processes_pack_once_and_share(tiny_pte: Path, expected: list[int], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with pool(2) as processes:
        answers = [processes.submit(load_and_answer, tiny_pte, folder) for _ in range(2)]
        results = [answer.result() for answer in answers]
    assert sorted(loaded.packing for loaded, _ in results) == [Packing.PACKED, Packing.REUSED]
    assert [ids for _, ids in results] == [expected] * 2
    with NativeEngine() as engine, pool() as processes:
        assert engine.load(tiny_pte, folder).packing == Packing.REUSED
        loaded, found = processes.submit(load_and_answer, tiny_pte, folder).result()
        assert (loaded.packing, found) == (Packing.REUSED, expected)


def as_nobody(model: Path, folders: list[Path]) -> list[tuple[Loaded, list[int]]]:
    _library()  # compiled and loaded by root
    os.setuid(NOBODY)
    return [load_and_answer(model, folder) for folder in folders]


@pytest.fixture
def public(tiny_pte: Path) -> Iterator[Path]:
    """A folder that nobody may read, but not write to, with model.pte."""
    if os.getuid() != 0:
        pytest.skip("only root can become nobody")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        shutil.copyfile(tiny_pte, Path(name, "model.pte"))
        yield Path(name)


def test_without_permission_it_runs_unpacked_and_says_so(public: Path, expected: list[int]) -> None:
    (public / "closed").mkdir(0o700)
    (public / "readable").mkdir(0o755)
    (public / "file").touch()
    sentences = {
        "closed": "closed cannot be opened: Permission denied",
        "readable": "readable cannot be written to: Permission denied",
        "new": "new cannot be made: Permission denied",
        "file": "file cannot be opened: Not a directory",
        "x" * 240: "is longer than XNNPACK's option takes",
    }
    with pool() as processes:
        folders = [public / name for name in sentences]
        results = processes.submit(as_nobody, public / "model.pte", folders).result()
    for (loaded, found), sentence in zip(results, sentences.values(), strict=True):
        assert (loaded.packing, found) == (Packing.UNPACKED, expected)
        assert loaded.packed_note.endswith(sentence)


def test_a_folder_that_is_only_readable_serves_what_it_has(public: Path, expected: list[int]) -> None:
    folder = public / "cache"
    assert load_and_answer(public / "model.pte", folder)[0].packing == Packing.PACKED
    os.chmod(folder, 0o755)
    for file in folder.iterdir():
        os.chmod(file, 0o644)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pool() as processes:  # their times are new, so that the file is read, but the check cannot be written again
        ((loaded, found),) = processes.submit(as_nobody, public / "model.pte", [folder]).result()
    assert (loaded.packing, found) == (Packing.REUSED, expected)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def on_a_small_disk(model: Path, place: Path, size: str) -> tuple[Loaded, list[int], list[str]]:
    new_namespace = 0x00020000  # CLONE_NEWNS: the disk is gone with this process
    assert ctypes.CDLL(None).unshare(new_namespace) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    loaded, found = load_and_answer(model, place / "cache")
    return loaded, found, [file.name for file in (place / "cache").iterdir()]


def test_a_full_disk_is_known_before(tiny_pte: Path, expected: list[int], tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    with pool() as processes:
        loaded, found, left = processes.submit(on_a_small_disk, tiny_pte, tmp_path, "2m").result()
    assert (loaded.packing, found, left) == (Packing.UNPACKED, expected, [])
    assert "bytes free, packed weights may need" in loaded.packed_note


def test_models_share_a_folder_and_never_weights(
    tiny_pte: Path, other_pte: Path, expected: list[int], tmp_path: Path
) -> None:
    folder, place = tmp_path / "cache", tmp_path / "model.pte"
    other = greedy(Session(other_pte), PROMPT, 16)
    with NativeEngine() as first, NativeEngine() as second:
        first.load(tiny_pte, folder)
        second.load(other_pte, folder)
        assert list(second.generate(PROMPT, GREEDY).token_ids) == other
        assert list(first.generate(PROMPT, GREEDY).token_ids) == expected
    for model, wanted in ((tiny_pte, expected), (other_pte, other)):
        loaded, found = load_and_answer(model, folder)
        assert (loaded.packing, found) == (Packing.REUSED, wanted)
    shutil.rmtree(folder)
    for model, wanted in ((tiny_pte, expected), (other_pte, other)):  # an export that takes the place of another
        shutil.copyfile(model, place)
        loaded, found = load_and_answer(place, folder)
        assert (loaded.packing, found) == (Packing.PACKED, wanted)
        assert only(folder, ".packed").stat().st_size == loaded.packed_bytes  # what was of the one before is gone


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
    context = engine.load(other_pte, prefill_chunk=1).context_length
    done = threading.Event()

    def stop() -> None:
        while not done.wait(0.05):
            engine.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    answer = engine.generate([5] * (context - 1), GREEDY)
    done.set()
    stopper.join()
    assert (answer.end, answer.token_ids) == (End.STOPPED, ()) and len(engine.tokens()) < context - 1
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


# ---- by a program of its own: under the sanitizers, and on a phone's CPU


def driver(sanitizers: str) -> Path:
    """The folder of the driver with these sanitizers, compiled unless it is in the cache."""
    packages = Path(str(distribution("executorch").locate_file("")))

    def build(folder: Path) -> None:
        command = ["cmake", "-S", str(CPP), "-B", str(folder), "-G", "Ninja", f"-DPOCKETPHI_SANITIZE={sanitizers}"]
        command += [
            f"-Dexecutorch_DIR={packages}/executorch/share/cmake",
            f"-DTORCH_INCLUDE={packages}/torch/include",
        ]
        for line in (command, ["ninja", "-C", str(folder), "-j", "2"]):
            made = subprocess.run(line, capture_output=True, text=True)
            assert made.returncode == 0, made.stdout + made.stderr

    name = f"engine-{sanitizers.replace(',', '-')}-{version('executorch')}"
    return compiled(name, [str(packages).encode(), *driver_parts()], build)


def driver_parts() -> list[bytes]:
    """What a driver is made from."""
    files = [path for folder in (CPP, ENGINE) for path in sorted(folder.iterdir()) if path.is_file()]
    return [path.read_bytes() for path in files]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_sanitizer_complains(sanitizers: str, tiny_pte: Path, tmp_path: Path) -> None:
    need("phone", [tool for tool in ("cmake", "ninja", "c++") if not shutil.which(tool)])
    build = driver(sanitizers)
    # ThreadSanitizer sees no atomics in libraries that were compiled without it, and takes their work for races.
    watched = {"LD_LIBRARY_PATH": str(build), "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}
    run_driver([str(build / "driver")], tiny_pte, tmp_path, watched)


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_emulated_arm64_answers_alike(cpu: str, tiny_pte: Path, tmp_path: Path) -> None:
    need("arm64", missing())
    define = f'-DPOCKETPHI_EXECUTORCH_VERSION="{version("executorch")}"'
    sources = [define, "-ffp-contract=off", f"-I{ENGINE}", *sorted(ENGINE.glob("*.cpp")), CPP / "driver.cpp"]
    name = f"engine-arm64-{version('executorch')}"
    build = compiled(name, driver_parts(), lambda folder: link(folder / "driver", *sources))
    run_driver(command(cpu, build / "driver"), tiny_pte, tmp_path, {})
    assert "-arm64_" in only(tmp_path / "alone", ".packed").name


def run_driver(start: list[str], model: Path, folder: Path, environment: dict[str, str]) -> None:
    """Both ways of driver.cpp, and the answer it prints: that of the Python runtime on this machine."""
    for mode in ("alone", "together"):
        line = [*start, mode, str(model), str(folder / mode), str(folder / "session")]
        ran = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment)
        assert ran.returncode == 0, ran.stderr[-4000:]
        if mode == "alone":
            prompt = [72, 101, 108, 108, 111, 32, 119, 111, 114]
            assert [int(word) for word in ran.stdout.split()] == greedy(Session(model), prompt, 4)
