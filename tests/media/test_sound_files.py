"""Sound of every format and rate comes out as it went in; hostile files are one sentence."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from checkpoints.errors import BadInput
from export.media import sound_files
from export.media.settings import AudioSettings
from export.media.sound_files import read_sound
from export.media.sounds import frames, tokens


def tones(rate: int, seconds: float = 1.0) -> np.ndarray:
    """Two channels, float32 [n, 2]: 440 Hz on the left, 880 on the right."""
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([np.sin(2 * np.pi * hertz * time) / 2 for hertz in (440, 880)], axis=1).astype(np.float32)


def saved(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


STEREO = saved(tones(16000), 16000)
FLAC = saved(tones(44100), 44100, "FLAC")


@pytest.mark.parametrize(
    ("kind", "subtype", "bound"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("WAV", "ULAW", 2e-2),
        ("WAVEX", "PCM_16", 1e-4),
        ("RF64", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 5e-2),
        ("OGG", "OPUS", 5e-2),
        ("MP3", None, 5e-2),
    ],
)
def test_formats(kind: str, subtype: str | None, bound: float, audio: AudioSettings, tmp_path: Path) -> None:
    """The mean of both channels, at the rate they have; the same from a file, whatever it is called."""
    data = saved(tones(16000), 16000, kind, subtype)
    sound = read_sound(data, audio)
    assert sound.rate == 16000 and sound.samples.dtype == np.float32 and sound.seconds == pytest.approx(1, abs=0.01)
    expected = tones(16000).mean(axis=1)
    inside = slice(2000, 14000)
    assert np.abs(sound.samples[inside] - expected[inside]).max() < bound
    (path := tmp_path / "sound.raw").write_bytes(data)
    assert np.array_equal(read_sound(path, audio).samples, sound.samples)


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
def test_rates(rate: int, audio: AudioSettings) -> None:
    """Beside scipy's resampling: below 16 kHz to 8, else to 16."""
    sound = read_sound(saved(tones(rate), rate, subtype="FLOAT"), audio)
    target = 8000 if rate < 16000 else 16000
    assert (sound.rate, len(sound.samples)) == (target, target)
    common = np.gcd(rate, target)
    expected = resample_poly(tones(rate).mean(axis=1).astype(np.float64), target // common, rate // common)
    inside = slice(target // 10, -target // 10)
    assert np.abs(sound.samples[inside] - expected[inside]).max() < 2e-3


def test_what_is_above_the_new_rate_does_not_come_back_below(audio: AudioSettings) -> None:
    time = np.arange(48000) / 48000
    high = np.sin(2 * np.pi * 11000 * time).astype(np.float32)  # 5 kHz if it were only thinned out
    samples = read_sound(saved(high, 48000, subtype="FLOAT"), audio).samples
    assert np.abs(samples[1000:-1000]).max() < 1e-4


def test_blocks_make_no_difference(audio: AudioSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_sound(FLAC, audio).samples
    monkeypatch.setattr(sound_files, "BLOCK", 1000)
    parts = read_sound(FLAC, audio).samples
    assert parts.shape == whole.shape and np.abs(parts - whole).max() < 1e-6


def test_five_minutes_of_mp3(audio: AudioSettings) -> None:
    sound = read_sound(saved(tones(16000, 300)[:, 0], 16000, "MP3"), audio)
    assert sound.seconds == pytest.approx(300, abs=0.1)
    assert tokens(frames(len(sound.samples), sound.rate, audio), audio) == 3750


def test_silence_and_a_single_sample(audio: AudioSettings) -> None:
    assert not read_sound(saved(np.zeros(1600), 16000), audio).samples.any()
    assert read_sound(saved(np.zeros(1), 16000), audio).samples.shape == (1,)


def sized(data: bytes, size: int) -> bytes:
    """A WAV whose header says so many bytes of samples."""
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


def counted(data: bytes, samples: int) -> bytes:
    """A FLAC whose header says so many samples."""
    word = int.from_bytes(data[18:26], "big") >> 36 << 36 | samples
    return data[:18] + word.to_bytes(8, "big") + data[26:]


@pytest.mark.parametrize(
    "data",
    [
        sized(STEREO, 2**32 - 1),  # as written into a pipe
        sized(STEREO, 10**9),
        saved(tones(16000), 16000, "RF64"),
        counted(FLAC, 0),  # as written into a pipe
        counted(FLAC, 2**36 - 1),
    ],
)
def test_a_header_that_says_too_much_is_not_believed(data: bytes, audio: AudioSettings) -> None:
    assert len(read_sound(data, audio, max_seconds=5).samples) == 16000


def test_a_recording_that_was_cut_off(audio: AudioSettings) -> None:
    half = read_sound(STEREO[: len(STEREO) // 2], audio).samples
    assert 7900 < len(half) < 8000 and np.array_equal(half, read_sound(STEREO, audio).samples[: len(half)])


def with_value(value: float) -> bytes:
    samples = tones(16000)
    samples[9000, 1] = value
    return saved(samples, 16000, subtype="FLOAT")


MPEG4 = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b"hello, I am text", r'it is no sound that is known here \(".*"\): WAV, FLAC, Ogg, MP3 are read'),
        (STEREO[:30], "it is no sound that is known here"),
        (sized(STEREO, 0), "it holds no samples"),
        (FLAC[: len(FLAC) // 2], "it is damaged or truncated: "),
        (with_value(float("nan")), "it has samples that are no finite numbers"),
        (with_value(float("-inf")), "it has samples that are no finite numbers"),
        (saved(tones(16000, 3), 16000), "it lasts longer than the 2 seconds that are read"),
        (counted(saved(tones(16000, 3), 16000, "FLAC"), 0), "it lasts longer than the 2 seconds that are read"),
        (saved(tones(16000), 7999), "it has 7999 samples a second, 8000 to 768000 are read"),
        (saved(tones(16000), 2**31 - 1), "it has 2147483647 samples a second, 8000 to 768000 are read"),
        (MPEG4, r"it is MPEG-4 \(m4a, mp4\), which must be converted first: WAV, FLAC, Ogg, MP3 are read"),
        (b"\x1aE\xdf\xa3 webm of a browser", "it is WebM or Matroska, which must be converted first"),
        (saved(tones(16000), 16000, "AIFF"), "it is AIFF, which must be converted first"),
        (saved(tones(16000), 16000, "AU"), r'it is no sound that is known here \("AU"\)'),
    ],
)
def test_hostile_files_are_a_sentence(data: bytes, sentence: str, audio: AudioSettings) -> None:
    with pytest.raises(BadInput, match=f"^{sentence}"):
        read_sound(data, audio, "it", max_seconds=2)


@pytest.mark.parametrize("kind", ["folder", "nothing", "pipe"])
def test_what_is_no_file(kind: str, tmp_path: Path, audio: AudioSettings) -> None:
    path = tmp_path / "sound.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(BadInput, match=f"{path} does not exist or is not a file"):
        read_sound(path, audio)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_random_damage_is_a_sound_or_a_sentence(kind: str, audio: AudioSettings) -> None:
    rng = np.random.default_rng(len(kind))
    whole = saved(tones(16000, 0.3), 16000, kind)
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        try:
            assert np.isfinite(read_sound(bytes(data[: rng.integers(1, 2 * len(data))]), audio).samples).all()
        except BadInput as problem:
            assert "\n" not in str(problem)
