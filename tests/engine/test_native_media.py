"""Pictures and sound in our C++ engine: logits, sessions, memory and refusals, against the wheel's runtime."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.errors import BadInput
from checkpoints.synthesize import synthesize
from export.engine.encoders import MediaSession
from export.engine.media_ids import Encoded, mode_of_ids, picture_id, sound_id
from export.engine.native import EngineFailed, NativeEngine, Packing, Sampling, Stopped
from export.engine.runner import read_media
from export.media.pictures import prepare, tile
from export.media.prompt import Mode
from export.media.sounds import log_mel, pieces, tokens
from export.pte import export_pte
from export.ptefile.reader import open_pte
from tests.engine.native import need_cmake, only, pool
from tests.engine.test_native_program import driver, watched

pytestmark = pytest.mark.usefixtures("compiler")

SIZES: dict[str, Any] = {
    "layers": 2, "vision_layers": 3, "audio_layers": 2, "scale": 8, "hidden": 384, "heads": 6, "kv_heads": 2,
    "intermediate": 768, "vocab": 700,
}  # fmt: skip
CONTEXT = 4096
CLOSE = 2e-5  # of logits around 1: spectrograms differ in the last bits
rng = np.random.default_rng(0)
WIDE, SMALL, OTHER = (rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((300, 640), (90, 91), (33, 50)))
SAID = rng.normal(0, 0.1, 24001).astype(np.float32)
LONG = rng.normal(0, 0.1, 16000 * 41).astype(np.float32)  # more than one window of attention
SLOW = rng.normal(0, 0.1, 4000).astype(np.float32)  # at half the rate


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multimodal file whose numbers are float32; not to be changed."""
    folder = tmp_path_factory.mktemp("phi4mm")
    source = synthesize(folder / "checkpoint", "phi4-multimodal", **SIZES)
    options: dict[str, Any] = {"quantize": False, "kv_cache": "fp32", "context": CONTEXT, "speculate": 7}
    return export_pte(str(source), out=folder / "phi4mm.pte", verify=False, **options).path


@pytest.fixture(scope="module")
def cache(compiler: None, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file's packed weights; not to be changed."""
    folder = tmp_path_factory.mktemp("packed") / "cache"
    with NativeEngine() as engine:
        assert engine.load(file, folder).packing == Packing.PACKED
    return folder


@pytest.fixture
def engine(file: Path, cache: Path) -> Iterator[NativeEngine]:
    with NativeEngine() as engine:
        loaded = engine.load(file, cache)
        assert loaded.packing == Packing.REUSED, loaded.packed_note
        yield engine


class Reference:
    """The wheel's runtime, with Python's preparation; every prompt is fed from its start."""

    def __init__(self, file: Path) -> None:
        self.session, self.facts = MediaSession(file), read_media(file)
        self.rows: dict[int, torch.Tensor] = {}

    def picture(self, pixels: np.ndarray) -> list[int]:
        assert self.facts.image
        made = self.session.picture(prepare(pixels, self.facts.image), self.facts.image)
        return self._keep(picture_id(pixels), made)

    def sound(self, samples: np.ndarray, rate: int, mode: Mode) -> list[int]:
        assert self.facts.audio
        made = self.session.sound(log_mel(samples, rate, self.facts.audio), self.facts.audio, mode)
        return self._keep(sound_id(samples, rate, mode), made)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Of the last tokens, as many as the file gives."""
        mode = mode_of_ids(ids)
        if mode == "text":
            return self.session.run("forward", torch.tensor([ids]), torch.tensor([0]))[0].numpy()
        rows = self.session.embed([max(token, 0) for token in ids])
        for at, token in enumerate(ids):
            if token < 0:
                rows[at] = self.rows[token]
        return self.session.decode(rows, 0, mode).numpy()

    def greedy(self, ids: list[int], count: int) -> list[int]:
        found = list(ids)
        for _ in range(count):
            found.append(int(self.logits(found)[-1].argmax()))
        return found[len(ids) :]

    def _keep(self, first_id: int, made: torch.Tensor) -> list[int]:
        ids = list(range(first_id, first_id - len(made), -1))
        self.rows |= zip(ids, made, strict=True)
        return ids


@pytest.fixture(scope="module")
def reference(file: Path) -> Reference:
    return Reference(file)


def check(engine: NativeEngine, reference: Reference, ids: list[int]) -> None:
    wanted = reference.logits(ids)[-1]
    assert np.abs(engine.feed(ids, SIZES["vocab"]) - wanted).max() < CLOSE
    assert engine.tokens() == ids


def reused(engine: NativeEngine, ids: list[int]) -> int:
    return engine.generate(ids, Sampling(max_new_tokens=1, ignore_eos=True)).reused_tokens


# ---- what is encoded, and what is said of it


def test_encoded(engine: NativeEngine, reference: Reference) -> None:
    image, audio = reference.facts.image, reference.facts.audio
    assert image and audio
    for pixels in (WIDE, SMALL):
        plan = tile(pixels.shape[1], pixels.shape[0], image)
        found = engine.picture(pixels)
        assert (found.first_id, found.count, found.parts) == (picture_id(pixels), plan.tokens, len(plan.valid))
        assert engine.picture_tokens(pixels.shape[1], pixels.shape[0]) == plan.tokens
        assert not found.reused and found.prepare_ms > 0 and found.encode_ms > 0
        again = engine.picture(pixels.copy())
        assert again == Encoded(found.first_id, found.count, found.parts, True, 0, 0)
    for samples, rate in ((SAID, 16000), (SLOW, 8000), (SAID[:400], 16000)):
        frames = len(log_mel(samples, rate, audio))
        for mode in ("speech", "vision"):
            found = engine.sound(samples, rate, mode)
            assert found.ids == reference.sound(samples, rate, mode) and not found.reused
            assert (found.count, found.parts) == (tokens(frames, audio), len(list(pieces(frames, audio))))
        assert engine.sound_tokens(len(samples), rate) == found.count
    engine.forget_media()
    assert not engine.picture(SMALL).reused


def test_rows_that_are_longest_unused_make_room(engine: NativeEngine) -> None:
    pictures = [OTHER + np.uint8(number) for number in range(9)]
    first = engine.picture(pictures[0])
    for pixels in pictures[1:5]:
        engine.picture(pixels)
    engine.feed([5, *first.ids], SIZES["vocab"])  # that is a use too
    for pixels in pictures[5:]:
        engine.picture(pixels)
    assert 9 * first.count > CONTEXT >= 7 * first.count
    assert all(engine.picture(pictures[number]).reused for number in (0, 3, 4, 5, 6, 7, 8))
    assert not any(engine.picture(pictures[number]).reused for number in (1, 2))


# ---- prompts


def test_prompts(engine: NativeEngine, reference: Reference) -> None:
    wide, small = engine.picture(WIDE).ids, engine.picture(SMALL).ids
    assert wide == reference.picture(WIDE) and small == reference.picture(SMALL)
    check(engine, reference, [1, 2, 3, *wide, 4, 5])
    check(engine, reference, [*small, 7, *wide, 4])
    assert engine.sound(SAID, 16000, "vision").ids == reference.sound(SAID, 16000, "vision")
    said = reference.sound(SAID, 16000, "vision")
    check(engine, reference, [6, *wide, 7, *said, 8])
    check(engine, reference, [6, *said, 7, *wide, 8])
    engine.sound(LONG, 16000, "speech")
    long = reference.sound(LONG, 16000, "speech")
    assert len(long) > 500
    check(engine, reference, [9, *long, 10])
    for samples, rate in ((SLOW, 8000), (SAID[:400], 16000)):
        engine.sound(samples, rate, "speech")
        check(engine, reference, [*reference.sound(samples, rate, "speech"), 11, 12])


def test_turns_that_change_the_mode(engine: NativeEngine, reference: Reference) -> None:
    """What stands before a picture has other keys and values beside it, and other ones again without."""
    small = engine.picture(SMALL).ids
    assert small == reference.picture(SMALL)
    assert engine.sound(SAID, 16000, "speech").ids == reference.sound(SAID, 16000, "speech")
    said = reference.sound(SAID, 16000, "speech")
    text, picture, sound = [20, 21, 22, 23], [20, 21, 22, *small, 24], [20, 21, 22, *said, 24]
    for ids in (text, picture, text, sound, picture, sound, text):
        check(engine, reference, ids)
        assert reused(engine, [*ids, 25]) == len(ids)
    check(engine, reference, picture)
    engine.rewind(3)  # only text is left, fed beside a picture
    assert engine.tokens() == [20, 21, 22]
    assert reused(engine, picture) == 3
    engine.rewind(3)
    assert reused(engine, text) == 0
    check(engine, reference, text)


def test_a_long_prompt_in_small_pieces(file: Path, reference: Reference, engine: NativeEngine, cache: Path) -> None:
    """Pieces of text, of a picture, and of both."""
    engine.load(file, cache, prefill_chunk=50)
    ids = [*range(60), *engine.picture(SMALL).ids, *range(70)]
    reference.picture(SMALL)
    check(engine, reference, ids)
    rows = engine.feed_rows(ids, 11, SIZES["vocab"])
    assert np.abs(rows[-8:] - reference.logits(ids)[-8:]).max() < CLOSE
    assert np.abs(rows[:3] - reference.logits(ids[:-8])[-3:]).max() < CLOSE


@pytest.mark.parametrize("drafts", [0, 7])
def test_answers(engine: NativeEngine, reference: Reference, drafts: int) -> None:
    ids = [1, 2, *engine.picture(SMALL).ids, 1, 2, 3, 1, 2]
    reference.picture(SMALL)
    sampling = Sampling(max_new_tokens=8, ignore_eos=True, draft_tokens=drafts)
    answer = engine.generate(ids, sampling)
    assert list(answer.token_ids) == reference.greedy(ids, 8)
    assert engine.generate([*ids, *answer.token_ids, 4], sampling).reused_tokens == len(ids) + 7
    assert engine.generate(ids, Sampling(max_new_tokens=4, repetition_penalty=1.3)).token_ids


def test_encoding_leaves_the_session_alone(engine: NativeEngine, reference: Reference) -> None:
    start = [1, 2, *engine.picture(SMALL).ids, 3]
    reference.picture(SMALL)
    engine.feed(start, SIZES["vocab"])
    wide, said = engine.picture(WIDE).ids, engine.sound(SAID, 16000, "vision").ids
    reference.picture(WIDE), reference.sound(SAID, 16000, "vision")
    assert engine.tokens() == start
    ids = [*start, *wide, 4, *said, 5]
    assert reused(engine, ids) == len(start)
    check(engine, reference, ids)


# ---- sessions in files


def test_a_session_with_a_picture(file: Path, cache: Path, reference: Reference, tmp_path: Path) -> None:
    saved = tmp_path / "session"
    with NativeEngine() as engine:
        engine.load(file, cache)
        ids = [1, 2, *engine.picture(SMALL).ids, 3]
        engine.feed(ids, SIZES["vocab"])
        engine.save(saved)
    planned = 2 * SIZES["layers"] * CONTEXT * 2 * 64 * 4
    assert saved.stat().st_size < planned / 4  # the activations are not in it
    reference.picture(SMALL)
    with NativeEngine() as engine:
        engine.load(file, cache)
        engine.feed([5, 6, 7], SIZES["vocab"])
        engine.restore(saved)
        assert engine.tokens() == ids
        check(engine, reference, [*ids, 4, 5])  # without its rows
        with pytest.raises(BadInput, match=r"what token 1 of the prompt stands for is not encoded.*give the picture"):
            engine.feed([9, *ids[2:], 4], SIZES["vocab"])
        assert engine.tokens() == [*ids, 4, 5]
        engine.restore(saved)
        engine.rewind(2)
        assert reused(engine, [1, 2, 8]) == 0  # they were fed beside a picture
        check(engine, reference, [1, 2, 8])


# ---- stopping


def test_stopping(engine: NativeEngine, reference: Reference) -> None:
    parts = 0

    def stop_at_the_second() -> None:
        nonlocal parts
        parts += 1
        if parts == 2:
            engine.stop()

    def interrupt() -> None:
        raise KeyboardInterrupt

    for encode in (
        lambda on_part: engine.picture(WIDE, on_part),
        lambda on_part: engine.sound(LONG, 16000, "speech", on_part),
    ):
        parts = 0
        with pytest.raises(Stopped):
            encode(stop_at_the_second)
        assert parts == 2
        with pytest.raises(KeyboardInterrupt):
            encode(interrupt)
    done = threading.Event()

    def stop() -> None:
        while not done.wait(0.01):
            engine.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Stopped):
        for loudness in np.linspace(1, 2, 100, dtype=np.float32):  # one of them is stopped while it is encoded
            engine.sound(LONG * loudness, 16000, "speech")
    done.set()
    stopper.join()
    with pytest.raises(EngineFailed, match="busy with another call"):
        engine.picture(OTHER, lambda: engine.tokens())
    found = engine.picture(WIDE)
    assert not found.reused
    reference.picture(WIDE)
    check(engine, reference, [1, *found.ids, 2])


# ---- memory and packed weights


def test_memory_of_encoding_is_given_back(file: Path, cache: Path) -> None:
    with pool() as processes:
        during, after = processes.submit(memory_of_encoding, file, cache).result()
    for kind in during:
        assert during[kind] > 8e6, kind
        assert after[kind] < 0.25 * during[kind], kind


def memory_of_encoding(model: Path, cache: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Private bytes that came with a picture and with a sound: at most while they were encoded, and afterwards."""
    from export.engine.native import memory_use

    with NativeEngine() as engine:
        engine.load(model, cache)
        engine.picture(SMALL), engine.sound(SAID, 16000, "speech")  # whatever is made once
        before, most = 0, 0

        def on_part() -> None:
            nonlocal most
            most = max(most, memory_use()["anonymous"] - before)

        during, after = {}, {}
        for kind in ("picture", "sound"):
            before, most = memory_use()["anonymous"], 0
            if kind == "picture":
                engine.picture(WIDE, on_part)
            else:
                engine.sound(LONG, 16000, "speech", on_part)
            during[kind], after[kind] = most, memory_use()["anonymous"] - before
        return during, after


def test_packed_weights_are_those_of_all_methods(file: Path, cache: Path, tmp_path: Path) -> None:
    """Packed at the first load, mapped afterwards, and not packed once more for what is loaded late."""
    packed = only(cache, ".packed")
    data, names = packed.read_bytes(), open_pte(file).parts
    for part in ("attention.speech.q_b", "attention.vision.q_b", "vision.layers.1.fc1", "audio.layers.1.feed_in.up"):
        (name,) = [name for name in names if name.endswith(f"{part}.weight") and not name.startswith("layers.1")]
        assert name.encode() in data, name
    before = packed.stat()
    answers = []
    for folder, packing in (
        (None, Packing.UNPACKED),
        (tmp_path / "new", Packing.PACKED),
        (tmp_path / "new", Packing.REUSED),
        (cache, Packing.REUSED),
    ):
        progress = list[int]()

        def told(done: int, _: int, progress: list[int] = progress) -> None:
            progress.append(done)

        with NativeEngine() as engine:
            loaded = engine.load(file, folder, on_progress=told)
            assert loaded.packing == packing, loaded.packed_note
            assert progress == sorted(set(progress))  # what methods have in common is counted once
            assert loaded.takes_pictures and loaded.takes_sound and loaded.sound_rate == 16000
            prompts = [
                [1, 2, 3],
                [1, *engine.picture(SMALL).ids, 2],
                [1, *engine.sound(SAID, 16000, "speech").ids, 2],
            ]
            for _ in range(2):
                engine.release()
                answers.append(np.array([engine.feed(ids, SIZES["vocab"]) for ids in prompts]))
                engine.forget_media()
                engine.picture(SMALL), engine.sound(SAID, 16000, "speech")
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert only(tmp_path / "new", ".packed").stat().st_size == before.st_size == packed.stat().st_size
    assert packed.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_sanitizer_complains(sanitizers: str, file: Path, tmp_path: Path) -> None:
    need_cmake()
    build = driver(sanitizers)
    line = [str(build / "driver"), "media", str(file), str(tmp_path / "cache"), str(tmp_path / "session")]
    ran = subprocess.run(line, capture_output=True, text=True, env=os.environ | watched(build))
    assert ran.returncode == 0, ran.stderr[-4000:]


# ---- refusals


def test_refusals(engine: NativeEngine, file: Path) -> None:
    picture, beside = engine.picture(SMALL), engine.sound(SAID, 16000, "vision")
    alone = engine.sound(SAID, 16000, "speech")
    engine.feed([5, *picture.ids, 6], SIZES["vocab"])
    before = engine.tokens()
    for ids, words in (
        ([*picture.ids, *alone.ids], "a sound of the prompt was encoded for prompts without pictures"),
        ([*beside.ids, *alone.ids], "a sound of the prompt was encoded for prompts without pictures"),
        ([5, -1], "token -1 of the prompt is below 0 and stands for no picture or sound"),
        ([5, picture.first_id - picture.count], "what token 1 of the prompt stands for is not encoded"),
        ([alone.first_id + (1 << 30)], "what token 0 of the prompt stands for is not encoded.*give the sound again"),
        ([5, *picture.ids, 700], "token 700 of the prompt is outside the vocabulary of 700"),
        ([5, *picture.ids * 8], "has a context of 4096"),
    ):
        with pytest.raises(BadInput, match=words):
            engine.feed(ids, SIZES["vocab"])
    assert engine.tokens() == before
    for encode, words in (
        (lambda: engine.picture(np.zeros((10, 20000, 3), np.uint8)), "20000 x 10 pixels: too narrow"),
        (lambda: engine.picture(np.zeros((0, 5, 3), np.uint8)), "is 5 x 0 pixels, there is nothing to see"),
        (lambda: engine.sound(SAID[:399], 16000, "speech"), "lasts 0.0249 seconds, at least 0.0250 are needed"),
        (lambda: engine.sound(SAID, 44100, "speech"), "44100 samples a second, 16000 or 8000 are taken"),
        (lambda: engine.sound(SAID * np.float32(np.nan), 16000, "speech"), "samples that are no finite numbers"),
        (lambda: engine.sound(SAID, 16000, "text"), "mode 0 is not one in which a prompt has sound"),
        (lambda: engine.picture_tokens(20000, 10), "too narrow"),
        (lambda: engine.sound_tokens(10, 16000), "at least 0.0250 are needed"),
    ):
        with pytest.raises(BadInput, match=words):
            encode()
    engine.forget_media()
    assert reused(engine, before) == len(before) - 1  # what was fed stays good
    with pytest.raises(BadInput, match="what token 0 of the prompt stands for is not encoded, or is forgotten"):
        engine.feed(picture.ids, SIZES["vocab"])


def test_a_file_of_text_takes_none(tiny_pte: Path) -> None:
    with NativeEngine() as engine:
        with pytest.raises(BadInput, match="no model is loaded"):
            engine.picture(SMALL)
        loaded = engine.load(tiny_pte)
        assert (loaded.takes_pictures, loaded.takes_sound, loaded.sound_rate) == (False, False, 0)
        for call in (lambda: engine.picture(SMALL), lambda: engine.picture_tokens(5, 5)):
            with pytest.raises(BadInput, match=r"tiny\.pte takes no pictures$"):
                call()
        for call in (lambda: engine.sound(SAID, 16000, "speech"), lambda: engine.sound_tokens(5000, 16000)):
            with pytest.raises(BadInput, match=r"tiny\.pte takes no sound$"):
                call()
        with pytest.raises(BadInput, match="is outside the vocabulary"):
            engine.feed([5, picture_id(SMALL)], loaded.vocab_size)
        engine.forget_media()
