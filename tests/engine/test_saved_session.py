"""Sessions in files: taken up as they were, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from checkpoints.errors import BadInput
from export.engine.native import NativeEngine
from tests.engine.native import GREEDY, PROMPT, flip

pytestmark = pytest.mark.usefixtures("compiler")


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
