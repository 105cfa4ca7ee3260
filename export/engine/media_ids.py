"""Pictures and sound in a list of token ids: each row of what was encoded is an id below zero.

`id = -1 - (kind << 60 | digest << 20 | row)`. The digest is the first 40 bits of the SHA-256 of what is encoded: the
same pixels or samples have the same ids in every engine and process, and prompts are compared as those of text are.
The C++ engine makes the same ids (`cpp/pocketphi.h`). Knows pixels, samples and ids; nothing of encoders.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from export.media.prompt import Mode

OnPart = Callable[[], object]  # called before each part that is encoded; what it raises ends the encoding
ROW_BITS, DIGEST_BITS = 20, 40


class MediaKind(IntEnum):
    """What an id stands for; a sound beside pictures is projected otherwise, and so is another one."""

    PICTURE = 1
    SOUND = 2  # in a prompt of the mode "speech"
    SOUND_BESIDE_PICTURES = 3  # in one of the mode "vision"


@dataclass(frozen=True)
class Encoded:
    """A picture or sound that an engine has the rows of."""

    first_id: int
    count: int  # tokens
    parts: int  # crops of a picture, pieces of a sound
    reused: bool  # it had been encoded before, and the rows were still there
    prepare_ms: float  # scaling and cutting, or the spectrogram
    encode_ms: float

    @property
    def ids(self) -> list[int]:
        """As they stand in a prompt."""
        return media_ids(self.first_id, self.count)


def picture_id(pixels: np.ndarray) -> int:
    """The first id of a picture, RGB as uint8 [height, width, 3]."""
    height, width = pixels.shape[:2]
    head = b"picture" + struct.pack("<QQ", width, height)
    return _first_id(MediaKind.PICTURE, head, np.ascontiguousarray(pixels, np.uint8))


def sound_id(samples: np.ndarray, rate: int, mode: Mode) -> int:
    """The first id of a sound, float32 [n] with `rate` samples a second, in a prompt of `mode`."""
    head = b"sound" + struct.pack("<QQ", rate, len(samples))
    kind = MediaKind.SOUND_BESIDE_PICTURES if mode == "vision" else MediaKind.SOUND
    return _first_id(kind, head, np.ascontiguousarray(samples, "<f4"))


def media_ids(first_id: int, count: int) -> list[int]:
    """The ids of all its rows."""
    return list(range(first_id, first_id - count, -1))


def row_of(media_id: int) -> tuple[int, int]:
    """The first id of what an id belongs to, and which row of that it is."""
    row = (-1 - media_id) & ((1 << ROW_BITS) - 1)
    return media_id + row, row


def kind_of(media_id: int) -> int:
    """A `MediaKind`, or 0 for an id below zero that no picture and no sound has."""
    return (-1 - media_id) >> (ROW_BITS + DIGEST_BITS)


def decides(media_id: int) -> bool:
    """Whether the mode of a prompt follows from this id alone: a sound beside pictures needs their ids too."""
    return kind_of(media_id) != MediaKind.SOUND_BESIDE_PICTURES


def mode_of_ids(ids: Iterable[int]) -> Mode:
    """Which adapter a prompt of these ids is answered with."""
    kinds = {kind_of(token) for token in ids if token < 0}
    if kinds & {MediaKind.PICTURE, MediaKind.SOUND_BESIDE_PICTURES}:
        return "vision"
    return "speech" if kinds else "text"


def _first_id(kind: MediaKind, head: bytes, data: np.ndarray) -> int:
    made = hashlib.sha256(head)
    made.update(data.reshape(-1).view(np.uint8).data)
    digest = int.from_bytes(made.digest()[: DIGEST_BITS // 8], "big")
    return -1 - (kind << (ROW_BITS + DIGEST_BITS) | digest << ROW_BITS)
