"""What gives a conversation its logits: a `.pte` in our C++ engine, or in the wheel's runtime, with one face.

Knows tokens and logits; knows nothing of text or of how a token is chosen.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from checkpoints.errors import BadInput

EngineName = Literal["ours", "wheel"]
Progress = Callable[[int, int], object]  # bytes of the file loaded, of all


class Feeder(Protocol):
    """One KV cache and the tokens it holds."""

    chunk: int  # tokens fed at once
    held: list[int]  # whose keys and values the cache has; may be read by any thread

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [V] of the last token; only what follows the common prefix with `held` is computed."""
        ...

    def reset(self) -> None:
        """Forget all tokens."""
        ...

    def close(self) -> None: ...


class NativeFeeder:
    """Our C++ engine; packed weights are mapped from the folder `packed`, and shared by all who map them."""

    def __init__(self, path: Path, packed: Path | None, threads: int, on_progress: Progress | None) -> None:
        from export.engine.native import NativeEngine  # compiled on first use

        self._engine = NativeEngine()
        try:
            self.loaded = self._engine.load(path, packed, threads, on_progress=on_progress)
        except BaseException:
            self._engine.close()
            raise
        self.chunk, self._vocab_size = self.loaded.prefill_chunk, self.loaded.vocab_size
        self.held: list[int] = []

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        try:
            logits = self._engine.feed(ids, self._vocab_size)
        except BaseException:
            self.held = self._engine.tokens()
            raise
        self.held = list(ids)
        return logits

    def reset(self) -> None:
        self._engine.release()
        self.held = []

    def close(self) -> None:
        self._engine.close()


class WheelFeeder:
    """The wheel's runtime, for machines without a C++ compiler; weights are packed into private memory."""

    _one_at_a_time = threading.Lock()  # a step moves the file descriptors of the process: see native_errors

    def __init__(self, path: Path) -> None:
        from export.engine.session import Session  # imports torch

        with self._one_at_a_time:
            self._session = Session(path)
        chunk = self._session.constant("get_max_seq_len")
        assert isinstance(chunk, int)
        self.chunk = chunk
        self.held: list[int] = []

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self.held = self.held[: shared(self.held, ids[:-1])]
        logits = None
        while len(self.held) < len(ids):
            at = len(self.held)
            piece = ids[at : at + self.chunk]
            with self._one_at_a_time:
                logits = self._session.step(piece, at)
            self.held += piece
        assert logits is not None
        return logits[-1].numpy()

    def reset(self) -> None:
        self.held = []

    def close(self) -> None:
        self.__dict__.pop("_session", None)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def open_feeder(
    path: Path,
    engine: EngineName | None,
    packed: Path | None,
    threads: int,
    on_progress: Progress | None = None,
) -> Feeder:
    """Load a `.pte`; without `engine`, ours where a C++ compiler is. BadInput for options that the engine lacks."""
    if engine is None:
        engine = "ours" if shutil.which(os.environ.get("CXX") or "c++") else "wheel"
        packed = packed if engine == "ours" else None
    if engine == "ours":
        return NativeFeeder(path, packed, threads, on_progress)
    if packed is not None:
        raise BadInput("packed weights are kept by our engine only, not by the wheel's runtime")
    if threads:
        raise BadInput("a number of threads is for our engine, the wheel's runtime takes one for each core")
    return WheelFeeder(path)
