"""What gives a conversation its logits: a `.pte` in our C++ engine, or in the wheel's runtime, with one face.

Knows tokens, media ids and logits; knows nothing of text or of how a token is chosen.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from checkpoints.cache import cache_folder
from checkpoints.errors import BadInput
from export.engine.media_ids import Encoded, OnPart, mode_of_ids
from export.media.prompt import Mode
from export.media.settings import TEXT_ONLY, MediaFacts

if TYPE_CHECKING:
    from torch import Tensor

    from export.engine.session import Session
    from export.engine.wheel_media import WheelMedia

EngineName = Literal["ours", "wheel"]
Progress = Callable[[int, int], object]  # bytes of the file loaded, of all


def packed_folder(folder: str | os.PathLike[str] | None) -> Path:
    """Where packed weights are kept; by default in the user's cache, beside the compiled engine."""
    return cache_folder() / "packed" if folder is None else Path(folder)


class Feeder(Protocol):
    """One KV cache and the tokens it holds; ids below zero are rows of pictures and sound (`media_ids`)."""

    chunk: int  # tokens fed at once
    held: list[int]  # whose keys and values the cache has; may be read by any thread
    mode: Mode  # by which they were computed
    media: MediaFacts  # what the file takes beside text

    @property
    def load_ms(self) -> float:
        """Spent on loading until now: some methods are loaded when they are needed."""
        ...

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [V] of the last token; only what follows the common prefix with `held` is computed.

        The mode follows from all ids (`mode_of_ids`); where it is not that of `held`, nothing is in common.
        """
        ...

    def ready(self, mode: Mode) -> None:
        """Load what prompts of `mode` need, so that this is not measured as feeding."""
        ...

    def picture(self, pixels: np.ndarray, on_part: OnPart = lambda: None) -> Encoded:
        """Encode RGB pixels, uint8 [height, width, 3], unless their rows are still kept; then their ids can be fed.

        As many rows are kept as the context has tokens, those of the longest unused are dropped for others: what
        stands in one prompt is kept together, in fewer bytes than its keys and values. BadInput where the file takes
        no pictures, and for what is too narrow.
        """
        ...

    def sound(self, samples: np.ndarray, rate: int, mode: Mode, on_part: OnPart = lambda: None) -> Encoded:
        """As `picture`, of float32 samples [n] at the file's rate or half of it, for prompts of `mode`."""
        ...

    def reset(self) -> None:
        """Forget all tokens, and the rows of pictures and sound."""
        ...

    def close(self) -> None: ...


class NativeFeeder:
    """Our C++ engine; packed weights are mapped from the folder `packed`, and shared by all who map them."""

    def __init__(
        self,
        path: Path,
        packed: Path | None,
        threads: int,
        on_progress: Progress | None,
        media: MediaFacts = TEXT_ONLY,
    ) -> None:
        from export.engine.native import NativeEngine  # compiled on first use

        self._engine = NativeEngine()
        try:
            self.loaded = self._engine.load(path, packed, threads, on_progress=on_progress)
        except BaseException:
            self._engine.close()
            raise
        self.chunk, self._vocab_size = self.loaded.prefill_chunk, self.loaded.vocab_size
        self.held: list[int] = []
        self.mode: Mode = "text"
        self.media = media

    @property
    def load_ms(self) -> float:
        return self.loaded.load_ms

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        try:
            logits = self._engine.feed(ids, self._vocab_size)
        except BadInput:  # nothing has been forgotten
            raise
        except BaseException:
            self.held, self.mode = self._engine.tokens(), mode_of_ids(ids)
            raise
        self.held, self.mode = list(ids), mode_of_ids(ids)
        return logits

    def ready(self, mode: Mode) -> None:
        pass  # what a picture or a sound needs is loaded when it is encoded

    def picture(self, pixels: np.ndarray, on_part: OnPart = lambda: None) -> Encoded:
        return self._engine.picture(pixels, on_part)

    def sound(self, samples: np.ndarray, rate: int, mode: Mode, on_part: OnPart = lambda: None) -> Encoded:
        return self._engine.sound(samples, rate, mode, on_part)

    def reset(self) -> None:
        self._engine.release()
        self._engine.forget_media()
        self.held = []

    def close(self) -> None:
        self._engine.close()


class WheelFeeder:
    """The wheel's runtime, for machines without a C++ compiler; weights are packed into private memory."""

    def __init__(self, path: Path, media: MediaFacts = TEXT_ONLY, context: int = 0) -> None:
        from export.engine.session import Session  # imports torch
        from export.engine.wheel_media import WheelMedia

        begin = time.perf_counter()
        self._text: Session | None = None
        self._media: WheelMedia | None = None
        if media == TEXT_ONLY:
            self._text = Session(path)
            chunk = self._text.constant("get_max_seq_len")
            assert isinstance(chunk, int)
            self.chunk = chunk
        else:
            self._media = WheelMedia(path, context)
            self.chunk = self._media.chunk
        self.path, self.media = path, media
        self._load_ms = 1000 * (time.perf_counter() - begin)
        self.held: list[int] = []
        self.mode: Mode = "text"

    @property
    def load_ms(self) -> float:
        return self._load_ms + (self._media.load_ms if self._media is not None else 0)

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        mode = mode_of_ids(ids)
        self.ready(mode)
        if mode != self.mode:  # another adapter has other keys and values
            self.held, self.mode = [], mode
        self.held = self.held[: shared(self.held, ids[:-1])]
        logits = None
        while len(self.held) < len(ids):
            at = len(self.held)
            piece = ids[at : at + self.chunk]
            logits = self._step(piece, at, mode)
            self.held += piece
        assert logits is not None
        return logits[-1].numpy()

    def ready(self, mode: Mode) -> None:
        if self._media is not None:
            self._media.ready(mode)

    def picture(self, pixels: np.ndarray, on_part: OnPart = lambda: None) -> Encoded:
        if self._media is None or self.media.image is None:
            raise BadInput(f"{self.path} takes no pictures")
        return self._media.picture(pixels, self.media.image, on_part)

    def sound(self, samples: np.ndarray, rate: int, mode: Mode, on_part: OnPart = lambda: None) -> Encoded:
        if self._media is None or self.media.audio is None:
            raise BadInput(f"{self.path} takes no sound")
        return self._media.sound(samples, rate, mode, self.media.audio, on_part)

    def reset(self) -> None:
        self.held = []
        if self._media is not None:
            self._media.forget()

    def close(self) -> None:
        self._text = self._media = None

    def _step(self, piece: Sequence[int], at: int, mode: Mode) -> Tensor:
        if self._media is not None:
            return self._media.step(piece, at, mode)
        assert self._text is not None
        return self._text.step(piece, at)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def open_feeder(
    path: Path,
    engine: EngineName | None,
    packed: Path | None,
    threads: int,
    on_progress: Progress | None = None,
    media: MediaFacts = TEXT_ONLY,
    context: int = 0,
) -> Feeder:
    """Load a `.pte`; without `engine`, ours where a C++ compiler is. BadInput for options that the engine lacks.

    `media` and `context` (tokens) are the file's, see `read_facts`.
    """
    if engine is None:
        engine = "ours" if shutil.which(os.environ.get("CXX") or "c++") else "wheel"
        packed = packed if engine == "ours" else None
    if engine == "ours":
        return NativeFeeder(path, packed, threads, on_progress, media)
    if packed is not None:
        raise BadInput("packed weights are kept by our engine only, not by the wheel's runtime")
    if threads:
        raise BadInput("a number of threads is for our engine, the wheel's runtime takes one for each core")
    return WheelFeeder(path, media, context)
