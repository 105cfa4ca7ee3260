"""Pictures and sound in the wheel's runtime: encodes them, keeps their rows, and feeds prompts that have them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from export.engine.encoders import MediaSession
from export.engine.media_ids import Encoded, OnPart, picture_id, sound_id
from export.engine.media_rows import KeptRows
from export.media.prompt import Mode
from export.media.settings import AudioSettings, ImageSettings
from export.media.sounds import log_mel, pieces


class WheelMedia:
    """A multimodal file. Methods are loaded when a prompt needs them; encoders are given back when it is fed."""

    def __init__(self, path: Path, context: int) -> None:
        self.session = MediaSession(path)
        self.chunk, self._context = self.session.chunk, context
        self.load_ms = 0.0  # spent on methods
        self.forget()

    def forget(self) -> None:
        """Drop the rows of all pictures and sounds."""
        self._rows = KeptRows(self._context)

    def ready(self, mode: Mode) -> None:
        """Load what prompts of `mode` are fed by, and free the encoders."""
        self.session.forget_encoders()
        self._load(*(("forward",) if mode == "text" else ("token_embedding", self.session.decoder(mode))))

    def step(self, ids: Sequence[int], at: int, mode: Mode) -> Tensor:
        """Logits [rows, V] of the last of these ids, the first of which stands at position `at`."""
        if mode == "text":
            return self.session.step(ids, at)
        rows = self.session.embed([max(token, 0) for token in ids])
        for place, token in enumerate(ids):
            if token < 0:
                rows[place] = self._rows.row(token)
        return self.session.decode(rows, at, mode)

    def picture(self, pixels: np.ndarray, settings: ImageSettings, on_part: OnPart) -> Encoded:
        """See `Feeder.picture`."""
        from export.media.pictures import prepare  # needs Pillow

        if found := self._rows.find(first := picture_id(pixels)):
            return found
        self._load("vision_crop", "vision_separators")
        begin = time.perf_counter()
        picture = prepare(pixels, settings)
        prepared = time.perf_counter()
        rows = self.session.picture(picture, settings, on_part)
        return self._keep(first, rows, len(picture.crops), begin, prepared)

    def sound(self, samples: np.ndarray, rate: int, mode: Mode, settings: AudioSettings, on_part: OnPart) -> Encoded:
        """See `Feeder.sound`."""
        if found := self._rows.find(first := sound_id(samples, rate, mode)):
            return found
        self._load("audio_subsample", f"audio_conformer_{mode}")
        begin = time.perf_counter()
        frames = log_mel(samples, rate, settings)
        prepared = time.perf_counter()
        rows = self.session.sound(frames, settings, mode, on_part)
        return self._keep(first, rows, len(list(pieces(len(frames), settings))), begin, prepared)

    def _load(self, *names: str) -> None:
        begin = time.perf_counter()
        if self.session.load(*names):
            self.load_ms += 1000 * (time.perf_counter() - begin)

    def _keep(self, first_id: int, rows: Tensor, parts: int, begin: float, prepared: float) -> Encoded:
        done = time.perf_counter()
        self._rows.keep(first_id, rows, parts)
        return Encoded(first_id, len(rows), parts, False, 1000 * (prepared - begin), 1000 * (done - prepared))
