"""Answers of a `.pte` to the two questions of lm-evaluation-harness: how likely a text is, and how it goes on.

Functions that can be called in processes of their own; each keeps its file loaded, and of what it fed last the common
beginning is not fed again. Knows nothing of the harness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from export.engine.memory import own_memory
from export.engine.runner import read_facts
from export.evaluation.models import FileModel, RunningFile, SharedFile


@dataclass(frozen=True)
class Continuation:
    """How likely `ids` are after `context`."""

    context: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """To be gone on from, greedily, until one of these texts, a stop id of the file's or `most` tokens."""

    ids: tuple[int, ...]
    until: tuple[str, ...]
    most: int


@dataclass(frozen=True)
class Shared:
    """How processes share the packed weights of a file; see `SharedFile`."""

    folder: Path
    threads: int  # of each process


class Answering:
    """A file and the tokens whose keys and values its cache holds."""

    def __init__(self, path: Path, shared: Shared | None = None) -> None:
        self.model = FileModel(path)
        self.running = SharedFile(self.model, shared.folder, shared.threads) if shared else RunningFile(self.model)
        self._stops = read_facts(path).eos_ids
        self._held: list[int] = []

    def logits(self, ids: Sequence[int], count: int) -> Tensor:
        """float32 [count, V] of the last tokens."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._held, ids, strict=False)))
        self._held = []  # while the cache is written, and where that fails
        found = self.running.last_logits(ids, count, min(same, len(ids) - count))
        self._held = list(ids)
        return found

    def likelihood(self, asked: Continuation) -> tuple[float, bool]:
        """Sum of log probabilities in nats, and whether every token is the likeliest one."""
        count = len(asked.ids)
        ids = (asked.context + asked.ids)[-(self.model.context + 1) : -1]
        found = self.logits(ids, min(count, len(ids))).log_softmax(-1)
        labels = torch.tensor(asked.ids[-len(found) :])
        likely = found.gather(1, labels[:, None]).sum()
        return float(likely), bool((found.argmax(-1) == labels).all())

    def text(self, asked: Prompt) -> str:
        """The answer, without the text that ended it."""
        room = self.model.context - asked.most
        ids, new = list(asked.ids[-room:] if room > 0 else asked.ids[-1:]), list[int]()
        decode = self.model.tokenizer.decode
        while len(new) < asked.most and len(ids) + len(new) < self.model.context:
            token = int(self.logits([*ids, *new], 1).argmax())
            if token in self._stops:
                break
            new.append(token)
            if any(end in decode(new) for end in asked.until):
                break
        text = decode(new)
        return text[: min((text.index(end) for end in asked.until if end in text), default=len(text))]


@lru_cache(maxsize=1)
def _answering(path: Path, shared: Shared | None) -> Answering:
    return Answering(path, shared)


def likelihoods(path: Path, shared: Shared | None, asked: Sequence[Continuation]) -> list[tuple[float, bool]]:
    return [_answering(path, shared).likelihood(one) for one in asked]


def texts(path: Path, shared: Shared | None, asked: Sequence[Prompt]) -> list[str]:
    return [_answering(path, shared).text(one) for one in asked]


def memory(path: Path, shared: Shared | None) -> int:
    """Private bytes that loading the file takes in this process."""
    before = own_memory().private_dirty
    _answering(path, shared)
    return own_memory().private_dirty - before
