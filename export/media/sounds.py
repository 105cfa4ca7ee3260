"""Samples of sound to the log-mel spectrogram that an audio encoder takes, and how it is cut for the encoder.

As in transformers' `Phi4MultimodalFeatureExtractor` (5.23) at the settings' rate, and in the model's own processor
(`Phi4MMAudioFeatureExtractor` in the checkpoint's remote code) at half of it. Knows samples and counts; nothing of
files or of what an encoder computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from checkpoints.errors import BadInput
from export.media.settings import AudioSettings

FULL_SCALE = np.float32(32768)  # the filters' floor of 1 is meant for samples of 16 bits
AT_ONCE = 1024  # frames: a long sound needs no more memory than its samples and its spectrogram


@dataclass(frozen=True)
class Piece:
    """Frames [start, stop) that are made tokens at once, and which of its tokens count."""

    start: int
    stop: int
    skip: int  # tokens at its beginning that another piece makes
    tokens: int  # that count, after those


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) that attend to each other."""

    start: int
    stop: int
    padding: int  # tokens of zeros after them, which are attended to as well: the original does so


def log_mel(samples: np.ndarray, rate: int, settings: AudioSettings, name: str = "the sound") -> np.ndarray:
    """float32 [n] at the settings' rate or half of it to float32 [frames, bins].

    At half the rate frames are as long in time, and what lies above is zero. BadInput for less than one frame.
    """
    total = frames(len(samples), rate, settings, name)
    slower = settings.rate // rate
    length, hop, fft = settings.frame // slower, settings.hop // slower, settings.fft // slower
    window, filters = np.hamming(length), _filters(settings)
    framed = np.lib.stride_tricks.sliding_window_view(np.asarray(samples, np.float32), length)[::hop]
    found = np.empty((total, settings.bins), np.float32)
    for start in range(0, total, AT_ONCE):
        some = framed[start : start + AT_ONCE]
        # Pre-emphasis within a frame; its first sample has itself before it.
        before = np.concatenate([some[:, :1], some[:, :-1]], axis=1)
        emphasized = (some - np.float32(settings.preemphasis) * before) * FULL_SCALE
        spectrum = np.abs(np.fft.rfft(window * emphasized, fft).astype(np.complex64))
        if slower > 1:  # the original drops the highest bin and fills up with zeros
            spectrum = np.pad(spectrum[:, :-1], ((0, 0), (0, len(filters) - spectrum.shape[1] + 1)))
        found[start : start + AT_ONCE] = np.log(np.maximum(spectrum**2 @ filters, np.float32(1)))
    return found


def frames(samples: int, rate: int, settings: AudioSettings, name: str = "the sound") -> int:
    """Whole frames in so many samples at the settings' rate or half of it; BadInput for none."""
    if rate not in (settings.rate, settings.rate // 2):
        raise ValueError(f"{rate} samples a second, not {settings.rate} or half of it")
    slower = settings.rate // rate
    length, hop = settings.frame // slower, settings.hop // slower
    if samples < length:
        raise BadInput(f"{name} lasts {samples / rate:.4f} seconds, at least {length / rate:.4f} are needed")
    return (samples - length) // hop + 1


def tokens(total: int, settings: AudioSettings) -> int:
    """Tokens that so many frames become."""
    return -(-total // settings.frames_per_token)


def pieces(total: int, settings: AudioSettings) -> Iterator[Piece]:
    """Cuts `total` frames so that the tokens of the pieces are those of the whole.

    All but a single piece are of full length within a token: the last one reaches back as far as it must.
    """
    per, core = settings.frames_per_token, settings.piece - settings.before - settings.after
    done, end = 0, tokens(total, settings)
    while done < end:
        start = max(0, done * per - settings.before)
        stop = start + settings.piece
        if stop >= total:
            start = min(start, max(0, -(-(total - settings.piece) // per) * per))
            stop, count = total, end - done
        else:
            count = (core + (settings.before if start == 0 else 0)) // per
        yield Piece(start, stop, done - start // per, count)
        done += count


def windows(total: int, settings: AudioSettings) -> Iterator[Window]:
    """Cuts `total` tokens; a sound of one window is not padded, and of more than one the last is."""
    for start in range(0, total, settings.window):
        stop = min(start + settings.window, total)
        yield Window(start, stop, settings.window - (stop - start) if total > settings.window else 0)


@cache
def _filters(settings: AudioSettings) -> np.ndarray:
    """Triangles on Kaldi's mel scale: float32 [fft / 2 + 1, bins]."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(settings.low_hz), mel(settings.high_hz), settings.bins + 2)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    place = mel(np.arange(settings.fft // 2 + 1) * settings.rate / settings.fft)[:, None]
    rising, falling = (place - left) / (middle - left), (right - place) / (right - middle)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
