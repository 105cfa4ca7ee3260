"""The sizes that a model's pictures and sound are cut by. There are no defaults: a model's configuration has them.

A file that takes them carries them as constant methods, a list of numbers each, in the order of the fields here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TypeVar

from checkpoints.errors import BadInput

Settings = TypeVar("Settings", "ImageSettings", "AudioSettings")


@dataclass(frozen=True)
class ImageSettings:
    """How a picture is cut into crops, and a crop into tokens."""

    crop: int  # pixels on a side of a crop
    patch: int  # pixels on a side of a patch
    pooled: int  # tokens on a side of a crop
    max_crops: int  # of a picture, its global view not counted
    mean: float  # of every channel, where pixels are 0 to 1
    std: float

    def __post_init__(self) -> None:
        _check_positive(self, "crop", "patch", "pooled", "max_crops", "std")
        if self.crop % (self.patch * self.pooled):
            raise BadInput(
                f"a crop of {self.crop} pixels is not cut evenly into patches of {self.patch} pixels "
                f"and {self.pooled} tokens on a side"
            )

    @property
    def grid(self) -> int:
        """Patches on a side of a crop."""
        return self.crop // self.patch

    @property
    def pool(self) -> int:
        """Patches on a side of a token."""
        return self.grid // self.pooled


@dataclass(frozen=True)
class AudioSettings:
    """How sound becomes frames of a log-mel spectrogram, and frames become tokens."""

    rate: int  # samples a second; half of it is taken too
    bins: int  # of the log-mel spectrogram
    frame: int  # samples
    hop: int  # samples from the start of a frame to that of the next
    fft: int  # samples, a frame with zeros after it
    preemphasis: float
    low_hz: float  # where the lowest mel filter begins
    high_hz: float  # where the highest ends
    frames_per_token: int
    window: int  # tokens that attend to each other
    piece: int  # frames that are made tokens at once
    before: int  # frames of a piece that only the tokens after them need
    after: int  # frames of a piece that only the tokens before them need

    def __post_init__(self) -> None:
        _check_positive(self, "rate", "bins", "frame", "hop", "fft", "frames_per_token", "window", "piece")
        if odd := [name for name in ("rate", "frame", "hop", "fft") if getattr(self, name) % 2]:
            raise BadInput(f"{odd[0]} is {getattr(self, odd[0])}, which has no half for sound of half the rate")
        if self.frame > self.fft:
            raise BadInput(f"a frame of {self.frame} samples does not fit into an FFT of {self.fft}")
        if not 0 <= self.low_hz < self.high_hz <= self.rate / 2:
            raise BadInput(f"mel filters from {self.low_hz} to {self.high_hz} Hz, sound has 0 to {self.rate / 2} Hz")
        core = self.piece - self.before - self.after
        if self.before < 0 or self.after < 0 or core < 1 or core % self.frames_per_token:
            raise BadInput(
                f"a piece of {self.piece} frames less {self.before} before and {self.after} after "
                f"is no multiple of the {self.frames_per_token} frames of a token"
            )
        if self.before % self.frames_per_token:
            raise BadInput(
                f"{self.before} frames before a piece are no multiple of {self.frames_per_token}, a token's"
            )


@dataclass(frozen=True)
class MediaFacts:
    """What a file takes beside text, and the token that stands for each row of it in a prompt; None for nothing."""

    image: ImageSettings | None = None
    image_id: int | None = None
    audio: AudioSettings | None = None
    audio_id: int | None = None

    def constants(self) -> dict[str, int | list[float]]:
        """The constant methods of a file."""
        found: dict[str, int | list[float]] = {}
        if self.image is not None and self.image_id is not None:
            found |= {IMAGE_SETTINGS: numbers(self.image), IMAGE_ID: self.image_id}
        if self.audio is not None and self.audio_id is not None:
            found |= {AUDIO_SETTINGS: numbers(self.audio), AUDIO_ID: self.audio_id}
        return found


TEXT_ONLY = MediaFacts()
IMAGE_SETTINGS, IMAGE_ID = "get_image_settings", "get_image_token_id"
AUDIO_SETTINGS, AUDIO_ID = "get_audio_settings", "get_audio_token_id"


def numbers(settings: ImageSettings | AudioSettings) -> list[float]:
    """As a constant method gives them."""
    return [float(value) for value in astuple(settings)]


def from_numbers(kind: type[Settings], found: Sequence[float], where: str) -> Settings:
    """Settings of a constant method's numbers; `where` stands in the sentence of BadInput for what are none."""
    named = fields(kind)
    if len(found) != len(named):
        raise BadInput(f"{where} has {len(found)} numbers, {len(named)} are known")
    values = [value if field.type == "float" else int(value) for field, value in zip(named, found, strict=True)]
    return kind(*values)  # type: ignore[arg-type]


def _check_positive(settings: ImageSettings | AudioSettings, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise BadInput(f"{name} is {getattr(settings, name)}, it must be above 0")
