"""Files of sound to samples of one channel at a model's rate: the only module that knows soundfile and soxr.

Files come from strangers: they are decoded and resampled in blocks, and memory and time are bounded by what is really
there, whatever length a header claims. A file that ends early, as of a recorder that was switched off, is read as
far as it goes where its format can tell (WAV, MP3), and refused where it cannot (FLAC, Ogg).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO

import numpy as np

from checkpoints.errors import BadInput, show
from export.media.settings import AudioSettings

try:
    import soundfile
    import soxr
except (ImportError, OSError) as problem:  # OSError: soundfile without its library
    raise BadInput(f"sound needs the packages soundfile and soxr ({problem}): `uv sync --extra media`") from None

FORMATS = {"WAV": "WAV", "WAVEX": "WAV", "RF64": "WAV", "FLAC": "FLAC", "OGG": "Ogg", "MP3": "MP3"}
MAX_SECONDS = 1800.0  # 22,500 tokens, and 115 MB of samples
MAX_RATE = 768_000  # samples a second; a header can say any number
BLOCK = 1 << 20  # samples of all channels that are decoded at once
STARTS = {
    b"\x1aE\xdf\xa3": "WebM or Matroska",
    b"#!AMR": "AMR",
    b"FORM": "AIFF",
    b"\xff\xf1": "AAC",
    b"\xff\xf9": "AAC",
}


@dataclass(frozen=True)
class Sound:
    """Samples of one channel."""

    samples: np.ndarray  # float32 [n], -1 to 1 unless a file of floats has more
    rate: int  # samples a second: the settings' or half of it

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_sound(
    source: bytes | str | os.PathLike[str],
    settings: AudioSettings,
    name: str | None = None,
    *,
    max_seconds: float = MAX_SECONDS,
) -> Sound:
    """The sound of a file, or of its bytes: WAV, FLAC, Ogg (Vorbis, Opus) or MP3, the mean of its channels.

    As in the model's own processor, sound below the settings' rate comes at half of it, for which the spectrogram has
    zeros above; what is slower than that is refused. The processor changes rates by whole factors only and so
    plays 44.1 kHz at 0.73 of its speed; here every rate is resampled to what it is called (soxr, high quality).
    BadInput where there is no such file, for other formats, damage, samples that are no numbers and more than
    `max_seconds`; `name` stands in the sentence, by default the path.
    """
    name = name or ("the sound" if isinstance(source, bytes) else str(Path(source)))
    with _opened(source, name) as file:
        half = settings.rate // 2
        if not half <= file.samplerate <= MAX_RATE:
            raise BadInput(f"{name} has {file.samplerate} samples a second, {half} to {MAX_RATE} are read")
        rate = settings.rate if file.samplerate >= settings.rate else half
        resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
        resampled = [resampler.resample_chunk(block) for block in _blocks(file, name, max_seconds)]
        resampled.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = np.concatenate(resampled)
    if len(samples) == 0:
        raise BadInput(f"{name} holds no samples")
    return Sound(samples, rate)


def _blocks(file: _Forward, name: str, max_seconds: float) -> Iterator[np.ndarray]:
    """All there is, in order: float32 [n], the mean of the channels."""
    count, at_once = 0, max(1, BLOCK // file.channels)
    while True:
        try:
            block = file.read(at_once, dtype="float32", always_2d=True)
        except Exception as problem:
            raise BadInput(f"{name} is damaged or truncated: {show(str(problem))}") from None
        if not len(block):
            return
        count += len(block)
        if count > max_seconds * file.samplerate:
            raise BadInput(f"{name} lasts longer than the {max_seconds:g} seconds that are read")
        mono = block.mean(axis=1)
        if not np.isfinite(mono).all():
            raise BadInput(f"{name} has samples that are no finite numbers")
        yield mono


class _Forward(soundfile.SoundFile):
    """Read once from start to end: soundfile 0.14 seeks after each read, which fails in a FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(source: bytes | str | os.PathLike[str], name: str) -> Iterator[_Forward]:
    if not isinstance(source, bytes) and not Path(source).is_file():  # a pipe would wait forever
        raise BadInput(f"{name} does not exist or is not a file")
    with _raw(source, name) as raw:
        if not (start := os.pread(raw.fileno(), 12, 0)):
            raise BadInput(f"{name} is empty")
        os.lseek(raw.fileno(), 0, os.SEEK_SET)
        # A descriptor has no name, so that soundfile goes by the content: of a ".raw" it would ask the rate.
        try:
            file = _Forward(raw.fileno(), closefd=False)
        except Exception as problem:
            raise BadInput(_not_read(start, name, getattr(problem, "error_string", str(problem)))) from None
        with file:
            if file.format not in FORMATS:
                raise BadInput(_not_read(start, name, file.format))
            yield file


def _raw(source: bytes | str | os.PathLike[str], name: str) -> IO[bytes]:
    """A file with a descriptor: given Python's own objects, libsndfile calls back and prints what fails there."""
    if isinstance(source, bytes):
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
        file.write(source)
        file.flush()
        return file
    try:
        return FileIO(os.fspath(source))
    except OSError as problem:
        raise BadInput(f"{name} cannot be read: {problem.strerror}") from None


def _not_read(start: bytes, name: str, reason: str) -> str:
    known = [kind for mark, kind in STARTS.items() if start.startswith(mark)]
    if start[4:8] == b"ftyp":
        known = ["MPEG-4 (m4a, mp4)"]
    formats = ", ".join(dict.fromkeys(FORMATS.values()))
    if known:
        return f"{name} is {known[0]}, which must be converted first: {formats} are read"
    return f"{name} is no sound that is known here ({show(reason)}): {formats} are read"
