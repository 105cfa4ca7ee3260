"""Pictures and sound as our C++ engine prepares them, against the Python that says how: sizes, pixels, log-mels."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import c_int32, c_size_t, c_uint64, c_void_p
from dataclasses import astuple, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.errors import BadInput
from export.engine.native import CPP, FLAGS
from export.media import vectors
from export.media.picture_files import resize
from export.media.pictures import merge, prepare, tile
from export.media.settings import AudioSettings, ImageSettings, numbers
from export.media.sounds import log_mel, pieces, tokens, windows
from tests.tools import need

SOURCES = ("pictures.cpp", "sounds.cpp", "fft.cpp", "media_ids.cpp", "sha256.cpp")
_, IMAGES, AUDIO = vectors.read()


class Calls:
    """tests/engine/cpp/media_calls.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __call__(self, name: str, settings: ImageSettings | AudioSettings | None, *arguments: Any) -> int:
        """What the function returns; BadInput with its sentence for a refusal."""
        function = getattr(self.library, name)
        function.restype = ctypes.c_int64
        refused = ctypes.create_string_buffer(1024)
        arrays = [np.array(numbers(settings))] if settings is not None else []
        given: list[Any] = [part for array in arrays for part in (address(array), c_size_t(len(array)))]
        result: int = function(*given, *arguments, refused)
        if result < 0:
            raise BadInput(refused.value.decode())
        return result


def address(array: np.ndarray) -> c_void_p:
    assert array.flags.c_contiguous
    return c_void_p(array.ctypes.data)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    need("phone", [] if shutil.which("c++") else ["c++"])
    out = tmp_path_factory.mktemp("media") / "media.so"
    sources = [Path(__file__).parent / "cpp" / "media_calls.cpp", *(CPP / name for name in SOURCES)]
    subprocess.run(["c++", *FLAGS, "-shared", f"-I{CPP}", *map(str, sources), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture(scope="module")
def calls(library: ctypes.CDLL) -> Calls:
    return Calls(library)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 100_003 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tilings(calls: Calls) -> None:
    """Of many sizes and numbers of crops, also those that are refused, in the same words."""
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (20000, 10), (10, 20000), (448, 448), (449, 448), (1, 448), (448, 1), (1000000, 1), (5, 7)]
    sizes += [(int(width), int(height)) for width, height in 10 ** rng.uniform(0, 4, (400, 2))]
    settings = [replace(IMAGES, max_crops=most) for most in (1, 4, 9, 36)]
    settings += [ImageSettings(56, 14, 2, 7, 0.5, 0.5), ImageSettings(60, 5, 3, 12, 0.4, 0.3)]
    refused = 0
    for how in settings:
        for width, height in sizes:
            out = np.zeros(7 + 2 * (1 + how.max_crops), np.int64)
            given = (how, c_size_t(width), c_size_t(height), address(out))
            try:
                plan = tile(width, height, how)
            except BadInput as problem:
                refused += 1
                with pytest.raises(BadInput) as found:
                    calls("tiling", *given)
                assert str(found.value) == str(problem)
                continue
            crops = calls("tiling", *given)
            wanted = (
                plan.columns,
                plan.rows,
                plan.width,
                plan.height,
                plan.token_rows,
                plan.token_columns,
                plan.tokens,
            )
            assert tuple(out[:7]) == wanted, (width, height)
            assert [tuple(pair) for pair in out[7 : 7 + 2 * crops].reshape(-1, 2)] == list(plan.valid)
    assert refused > 50
    with pytest.raises(BadInput, match="the picture is 0 x 4 pixels, there is nothing to see"):
        calls("tiling", IMAGES, c_size_t(0), c_size_t(4), None)
    with pytest.raises(BadInput, match="at most 1048576 on a side"):
        calls("tiling", IMAGES, c_size_t(1 << 40), c_size_t(4), None)


def test_resizing_is_pillows(calls: Calls, library: ctypes.CDLL) -> None:
    """To the byte, larger and smaller, along one side and both."""
    rng = np.random.default_rng(1)
    cases = [
        ((1, 1), (448, 448)),
        ((3, 2000), (3, 10)),
        ((2000, 3), (11, 3)),
        ((97, 31), (97, 31)),
        ((37, 91), (448, 1101)),
    ]
    cases += [((int(a), int(b)), (int(c), int(d))) for a, b, c, d in rng.integers(1, 300, (60, 4))]
    for (width, height), (to_width, to_height) in cases:
        pixels = noise(width, height)
        out = np.empty((to_height, to_width, 3), np.uint8)
        library.resized(address(pixels), *map(c_size_t, (width, height, to_width, to_height)), address(out))
        assert np.array_equal(out, resize(pixels, to_width, to_height)), (width, height, to_width, to_height)


@pytest.mark.parametrize(
    ("most", "width", "height"),
    [(36, 448, 448), (36, 1, 1), (36, 37, 91), (4, 641, 479), (4, 1000, 2999), (1, 800, 600), (9, 2500, 101)],
)
def test_crops(calls: Calls, most: int, width: int, height: int) -> None:
    settings, pixels = replace(IMAGES, max_crops=most, mean=0.4, std=0.3), noise(width, height)
    wanted = prepare(pixels, settings).crops
    out = np.empty_like(wanted)
    assert calls("crops", settings, address(pixels), c_size_t(width), c_size_t(height), address(out)) == len(wanted)
    assert np.abs(out - wanted).max() < 1e-5


@pytest.mark.parametrize(("most", "width", "height"), [(4, 640, 480), (36, 1, 1), (36, 2500, 100), (9, 300, 1000)])
def test_merging(calls: Calls, most: int, width: int, height: int) -> None:
    settings = replace(IMAGES, max_crops=most)
    plan, wide, rng = tile(width, height, settings), 5, np.random.default_rng(2)
    features = rng.random((len(plan.valid), settings.pooled**2, wide), np.float32)
    divider, separator = rng.random((2, wide), np.float32)
    rows = np.full((plan.tokens, wide), np.nan, np.float32)
    parts = map(address, (features, divider, separator))
    calls("merged", settings, c_size_t(width), c_size_t(height), *parts, c_size_t(wide), address(rows))
    assert np.array_equal(rows, merge(features, plan, settings, separator=separator, divider=divider))


def sounds() -> list[tuple[int, np.ndarray]]:
    """Rates and samples: noise, silence, tones, the shortest, odd and even counts of frames."""
    rng = np.random.default_rng(3)
    found = [(rate, vectors.tone(rate, *tone)) for rate, *tone in vectors.SOUNDS]
    for rate, shortest in ((16000, 400), (8000, 200)):
        for count in (shortest, shortest + 1, 2 * shortest + 13, 7919, 40000):
            found.append((rate, rng.normal(0, 0.2, count).astype(np.float32)))
        found.append((rate, np.zeros(5000, np.float32)))
    loud = np.zeros(1200, np.float32)
    loud[:400] = 1  # a loud frame beside silent ones: they are transformed in pairs
    return [*found, (16000, loud)]


@pytest.mark.parametrize("changed", [{}, {"fft": 600, "bins": 40}, {"fft": 434, "frame": 400, "high_hz": 4000.0}])
def test_spectrograms(calls: Calls, changed: dict[str, Any]) -> None:
    """Also with an FFT whose length is no power of two, and one of half of a prime's double."""
    settings = replace(AUDIO, **changed)
    for rate, samples in sounds():
        wanted = log_mel(samples, rate, settings)
        out = np.full_like(wanted, np.nan)
        assert calls(
            "spectrogram", settings, address(samples), c_size_t(len(samples)), c_int32(rate), address(out)
        ) == len(wanted)
        assert np.abs(out - wanted).max() < 1e-4, (rate, len(samples))


def test_refused_sounds(calls: Calls) -> None:
    def spectrogram(count: int, rate: int, value: float = 0.0) -> int:
        samples, out = np.full(count, value, np.float32), np.empty((100, AUDIO.bins), np.float32)
        return calls("spectrogram", AUDIO, address(samples), c_size_t(count), c_int32(rate), address(out))

    with pytest.raises(BadInput) as wanted:
        log_mel(np.zeros(199, np.float32), 8000, AUDIO)
    with pytest.raises(BadInput) as found:
        spectrogram(199, 8000)
    assert str(found.value) == str(wanted.value)
    with pytest.raises(BadInput, match="the sound has 44100 samples a second, 16000 or 8000 are taken"):
        spectrogram(4000, 44100)
    for value in (np.nan, np.inf):
        with pytest.raises(BadInput, match="samples that are no finite numbers"):
            spectrogram(4000, 16000, value)


def test_cuts(calls: Calls) -> None:
    """Every number of frames up to three pieces, and around windows."""
    per = AUDIO.frames_per_token
    totals = [*range(1, 1100), *(per * AUDIO.window + more for more in range(-9, 10)), 29998, 180000]
    for settings in (AUDIO, replace(AUDIO, window=7, piece=8 + 24 + 3, before=8, after=3)):
        for total in totals:
            cut, joined = [astuple(piece) for piece in pieces(total, settings)], tokens(total, settings)
            spans = [astuple(window) for window in windows(joined, settings)]
            out = np.zeros(4 * len(cut) + 3 * len(spans) + 16, np.int64)
            assert calls("cuts", settings, c_size_t(total), address(out)) == len(cut), total
            flat = [number for part in (*cut, *spans) for number in part]
            assert out[: len(flat)].tolist() == flat and not out[len(flat) :].any(), total


@pytest.mark.parametrize(
    ("kind", "at", "value", "sentence"),
    [
        (ImageSettings, 0, 450.0, "is not cut evenly"),
        (ImageSettings, 1, 0.5, "number 2 is out of range"),
        (ImageSettings, 5, 0.0, "or std is 0"),
        (AudioSettings, 0, 16001.0, "have no half"),
        (AudioSettings, 1, 0.0, "a number is 0"),
        (AudioSettings, 4, 398.0, "a frame does not fit into an FFT"),
        (AudioSettings, 7, 8001.0, "mel filters reach beyond the sound"),
        (AudioSettings, 10, 13.0, "pieces are not cut between tokens"),
        (AudioSettings, 6, float("nan"), "a number is out of range"),
        (AudioSettings, None, None, "has 12 numbers, 13 are known"),
        (ImageSettings, None, None, "has 5 numbers, 6 are known"),
    ],
)
def test_settings_that_are_none(
    library: ctypes.CDLL, kind: type, at: int | None, value: float, sentence: str
) -> None:
    """Of a damaged or newer file."""
    given = np.array(numbers(IMAGES if kind is ImageSettings else AUDIO))
    if at is None:
        given = given[:-1].copy()
    else:
        given[at] = value
    refused, name = ctypes.create_string_buffer(1024), "tiling" if kind is ImageSettings else "cuts"
    out = np.zeros(1024, np.int64)
    rest = (c_size_t(99), c_size_t(99)) if kind is ImageSettings else (c_size_t(99),)
    function = getattr(library, name)
    function.restype = ctypes.c_int64
    assert function(address(given), c_size_t(len(given)), *rest, address(out), refused) == -1
    assert sentence in refused.value.decode()


def test_digests(library: ctypes.CDLL) -> None:
    """40 bits of the sha256 that hashlib makes, over all lengths around a block."""
    for name in ("digest_of_picture", "digest_of_sound"):
        getattr(library, name).restype = c_uint64
    for width in range(1, 60):
        pixels = noise(width, 1)
        head = b"picture" + width.to_bytes(8, "little") + (1).to_bytes(8, "little")
        wanted = int.from_bytes(sha256(head + pixels.tobytes()).digest()[:5], "big")
        assert library.digest_of_picture(address(pixels), c_size_t(width), c_size_t(1)) == wanted
    samples = np.random.default_rng(4).random(10007, np.float32)
    head = b"sound" + (16000).to_bytes(8, "little") + len(samples).to_bytes(8, "little")
    wanted = int.from_bytes(sha256(head + samples.astype("<f4").tobytes()).digest()[:5], "big")
    assert library.digest_of_sound(address(samples), c_size_t(len(samples)), c_int32(16000)) == wanted


def test_modes(calls: Calls, library: ctypes.CDLL) -> None:
    """0 text, 1 vision, 2 speech, by the ids alone."""
    library.media_id.restype = ctypes.c_int64

    def media_id(kind: int, digest: int = 0xFEDCBA9876, row: int = (1 << 20) - 1) -> int:
        found: int = library.media_id(c_uint64(kind), c_uint64(digest), c_uint64(row))
        assert found == -1 - (kind << 60 | digest << 20 | row) < 0
        return found

    def mode(*ids: int) -> int:
        array = np.array(ids, np.int64)
        return calls("mode", None, address(array), c_size_t(len(array)))

    picture, alone, beside = map(media_id, (1, 2, 3))
    assert [mode(5, 6), mode(5, picture), mode(alone, 5), mode(beside, 5, picture), mode(beside)] == [0, 1, 2, 1, 1]
    for other in (picture, beside):
        with pytest.raises(BadInput, match="was encoded for prompts without pictures"):
            mode(alone, other)
    for stranger in (-1, media_id(0), media_id(4), -(1 << 63)):
        with pytest.raises(BadInput, match="is below 0 and stands for no picture or sound"):
            mode(5, stranger)
