"""The clips of the tiny multimodal checkpoint: single words, spoken by espeak-ng, and questions about them.

espeak-ng is a program of its own (Debian's package of that name); training needs it, the checkpoint does not.
Held-out clips have accents and voices that are not trained on.
"""

from __future__ import annotations

import io
import random
import subprocess
import wave
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from checkpoints.errors import BadInput
from checkpoints.tiny_questions import Fact

RATE = 16000  # samples a second
ASKING = ("colour", "shape", "digit")  # words that are questions when a picture lies beside them
WORDS = (*ASKING, "yes", "no", "stop", "left", "right")
TRAINED_ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-029", "en-gb-x-gbcwmd")
TRAINED_VOICES = ("m1", "m2", "m3", "m4", "m5", "f1", "f2", "f3", "f4", "Andy", "Alex", "Annie", "linda")
HELDOUT_ACCENTS = ("en-gb-scotland", "en-us-nyc")
HELDOUT_VOICES = ("m7", "f5", "steph", "paul")
QUIET = 0.01  # of full scale: what is less at both ends of a clip is cut off


class Clip(NamedTuple):
    """Samples of one channel, float32 [n] from -1 to 1, at RATE, and the word that they are."""

    samples: np.ndarray
    word: str


def asked(word: str) -> Fact:
    return Fact("Which word do you hear?", ("What word is it?", "What do you hear?"), f"The word is {word}.")


def clips(heldout: bool, each: int, seed: int) -> Iterator[Clip]:
    """Every word in every accent and voice `each` times, with speed and pitch at random; in a random order."""
    rng = random.Random(seed)
    accents, voices = (HELDOUT_ACCENTS, HELDOUT_VOICES) if heldout else (TRAINED_ACCENTS, TRAINED_VOICES)
    plan = [(word, f"{accent}+{voice}") for word in WORDS for accent in accents for voice in voices] * each
    rng.shuffle(plan)
    for word, voice in plan:
        yield Clip(say(word, voice, rng.randint(110, 190), rng.randint(30, 70)), word)


def heldout_clips() -> list[Clip]:
    """Every word once in every held-out accent and voice."""
    return list(clips(heldout=True, each=1, seed=1_000_003))


def say(word: str, voice: str, speed: int = 150, pitch: int = 50) -> np.ndarray:
    """A word spoken by espeak-ng, without silence around it: `speed` in words a minute, `pitch` from 0 to 99."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    try:
        spoken = subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise BadInput("espeak-ng is missing, which speaks the words: `apt-get install espeak-ng`") from None
    except subprocess.CalledProcessError as error:
        raise BadInput(f"espeak-ng has no voice {voice}: {error.stderr.decode(errors='replace').strip()}") from None
    with wave.open(io.BytesIO(spoken)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(1 << 24), "<i2") / 32768
    loud = np.flatnonzero(np.abs(samples) > QUIET)
    if not loud.size:
        raise BadInput(f"espeak-ng says nothing for {word!r} with the voice {voice}")
    return _resampled(samples[loud[0] : loud[-1] + 1], rate)


def recorded(clip: Clip, length: int, rng: random.Random, *, noise: bool = True) -> np.ndarray:
    """A clip as a microphone would have it: `length` samples, the word somewhere in them, louder or softer."""
    word = clip.samples[:length]
    found = np.zeros(length, np.float32)
    start = rng.randint(0, length - len(word))
    found[start : start + len(word)] = word * (rng.uniform(0.2, 0.95) / np.abs(word).max())
    if not noise:
        return found
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 10 ** rng.uniform(-4.5, -2.3), length)
    return np.clip(found + grain, -1, 1).astype(np.float32)


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """At RATE, by way of the spectrum; what lies above half of RATE is cut off."""
    ends = rate // 50  # silence, for the spectrum is that of a sound that repeats
    padded = np.pad(samples, (ends, ends + -len(samples) % rate))
    length = round(len(padded) * RATE / rate)
    found = np.fft.irfft(np.fft.rfft(padded)[: length // 2 + 1], length) * (length / len(padded))
    start = round(ends * RATE / rate)
    return found[start : start + round(len(samples) * RATE / rate)].astype(np.float32)
