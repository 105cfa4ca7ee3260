"""Memory and disk that an evaluation takes: one model at a time, and logits in rounds that fit what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints.source import resolve
from export.engine.memory import own_memory
from export.engine.tokenizer import load_tokenizer
from export.evaluation import kept_logits
from export.evaluation.evaluate import evaluate_texts
from export.evaluation.kept_logits import KeptLogits, rounds
from export.evaluation.models import FileModel, Logits

TINY = resolve("phi4-tiny").folder


@pytest.mark.parametrize("in_memory", [1 << 28, 100])
def test_logits_come_back(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_logits, "IN_MEMORY", in_memory)
    windows = [torch.randn(count, 7) for count in (3, 1, 9)]
    with KeptLogits() as kept:
        for window in windows:
            kept.append(window)
        for number in (2, 0, 1):
            assert torch.equal(kept[number], windows[number])


def test_rounds_fit_the_room() -> None:
    tokens = [5, 5, 5, 30, 1, 1, 9]
    found = rounds(tokens, 4, 40)
    assert [list(turn) for turn in found] == [[0, 1], [2], [3], [4, 5], [6]]
    assert rounds(tokens, 4, 10**6) == [range(7)]


class Counted:
    """A model that knows what is loaded beside it, with random logits of its own."""

    size, context, vocab_size = 1, 512, 2048
    loaded_now: list[str] = []  # noqa: RUF012  shared on purpose

    def __init__(self, name: str) -> None:
        self.name, self.loads = name, 0
        self.tokenizer = load_tokenizer(TINY / "tokenizer.json")

    @contextmanager
    def loaded(self) -> Iterator[Logits]:
        self.loads += 1
        self.loaded_now.append(self.name)
        assert self.loaded_now == [self.name], "two models at once"
        yield self._logits
        self.loaded_now.remove(self.name)

    def _logits(self, ids: Sequence[int]) -> Tensor:
        seed = sum(map(ord, self.name)) + sum(ids)
        return torch.randn(len(ids), self.vocab_size, generator=torch.Generator().manual_seed(seed))


def test_one_model_at_a_time_and_rounds_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {"text": (TINY / "heldout.txt").read_text(encoding="utf-8")}
    first, second, reference = (Counted(name) for name in ("first", "second", "reference"))
    at_once: list[int] = []
    append = KeptLogits.append

    def counting(kept: KeptLogits, logits: Tensor) -> None:
        append(kept, logits)
        at_once.append(sum(4 * shape.numel() for _, shape in kept._places))

    monkeypatch.setattr(KeptLogits, "append", counting)
    found = [
        evaluate_texts([first, second, reference], reference, text, 64, 5, room=room)
        for room in (1 << 30, 2 * 64 * 2048 * 4)
    ]
    assert found[0] == found[1]
    assert (first.loads, reference.loads) == (1 + 3, 1 + 3)  # five windows in one round, and in three
    assert max(at_once[:5]) == 5 * 64 * 2048 * 4 and max(at_once[5:]) == 2 * 64 * 2048 * 4


def test_a_model_is_gone_after_its_turn(tiny_pte: Path) -> None:
    """Private memory while it is loaded, and after; what the first load leaves behind is not counted."""
    model, used = FileModel(tiny_pte), []
    for _ in range(3):
        before = own_memory().private_dirty
        with model.loaded() as logits:
            logits(list(range(64)))
            used.append(own_memory().private_dirty - before)
        used.append(own_memory().private_dirty - before)
    assert used[2] > tiny_pte.stat().st_size / 2, used
    assert used[-1] < used[2] / 2, used
