"""How long a `.pte` takes for a token in the wheel's runtime here: to compare files, not to foretell phones.

Files take turns, A B C A B C …, so that a machine that slows down slows all of them. Knows nothing of quality.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from checkpoints.errors import BadInput
from export.evaluation.models import FileModel, RunningFile
from export.progress import Counting

POSITION = 256  # tokens before those that are timed, less where a context is too short
TOKENS = 8  # timed in each turn, one at a time
TURNS = 3


@dataclass(frozen=True)
class Speed:
    """Milliseconds for a token when decoding: the median of a turn."""

    position: int  # tokens before the first that is timed
    tokens: int  # timed in each turn
    turns: int
    ms: float  # of the fastest turn
    slowest_ms: float  # of the slowest one


def check_speed(files: Sequence[FileModel]) -> int:
    """The position that all files have room for; BadInput without one, which is better known before other work."""
    if not files:
        raise BadInput("--speed times a .pte, and none is given")
    least = min(files, key=lambda file: file.context)
    position = min(POSITION, least.context - TOKENS - 1)
    if position < 1:
        raise BadInput(f"{least.name} has a context of {least.context} tokens, --speed needs {TOKENS + 2}")
    return position


def measure_speed(files: Sequence[FileModel], progress: Counting = lambda what, done, of: None) -> list[Speed]:
    """Decode a few tokens with each file in each turn, at the same position in all. Memory: one file at a time."""
    position = check_speed(files)
    times: list[list[list[float]]] = [[] for _ in files]
    for turn in range(TURNS):
        for number, file in enumerate(files):
            progress(f"{file.name}, speed", turn * len(files) + number, TURNS * len(files))
            times[number].append(_decode(file, position))
    progress("", TURNS * len(files), TURNS * len(files))
    return [_speed(position, turns) for turns in times]


def _decode(file: FileModel, position: int) -> list[float]:
    """Milliseconds of each of TOKENS steps; the first step of one token is not among them."""
    ids = [token % file.vocab_size for token in range(position)]
    running = RunningFile(file)
    running.last_logits(ids, 1, 0)
    times = []
    for at in range(position, position + 1 + TOKENS):
        begin = time.perf_counter()
        running.session.step(ids[:1], at)
        times.append(1000 * (time.perf_counter() - begin))
    running.close()
    return times[1:]


def _speed(position: int, turns: list[list[float]]) -> Speed:
    medians = [statistics.median(turn) for turn in turns]
    return Speed(position, TOKENS, len(turns), min(medians), max(medians))
