"""The C++ engine's sampler against numpy: every choice, of every combination of its settings."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from export.engine.native import CPP, FLAGS
from tests.tools import need

COUNT = 50
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class How:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalty: float = 1.0
    seed: int = 1


def uniforms(seed: int) -> list[float]:
    """The first COUNT of splitmix64, by its definition."""
    found = []
    for step in range(1, COUNT + 1):
        z = (seed + step * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        found.append(((z ^ z >> 31) >> 11) / (1 << 53))
    return found


def reference(how: How, logits: np.ndarray, history: list[int]) -> list[int]:
    """Sort, cut off, add up: what transformers' warpers do one after the other."""
    scores = logits.copy()
    for token in set(history):
        scores[token] = (
            scores[token] / np.float32(how.penalty) if scores[token] > 0 else scores[token] * np.float32(how.penalty)
        )
    if how.temperature == 0:
        return [int(scores.argmax())] * COUNT
    order = np.argsort(-scores, kind="stable")
    kept = order[: how.top_k or None]
    p = np.exp((scores[kept].astype(np.float64) - scores.max()) / np.float32(how.temperature))
    if how.top_p < 1:
        before = np.cumsum(p) - p
        keep = before < np.float32(how.top_p) * p.sum()
        keep[0] = True
        kept, p = kept[keep], p[keep]
    kept, p = kept[p >= np.float32(how.min_p)], p[p >= np.float32(how.min_p)]
    if (how.top_k, how.top_p, how.min_p) == (0, 1.0, 0.0):
        kept, p = np.sort(kept), p[np.argsort(kept)]  # nothing is cut off: in the order of ids
    return [int(kept[np.searchsorted(np.cumsum(p), u * p.sum(), side="right")]) for u in uniforms(how.seed)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    need("phone", [] if shutil.which("c++") else ["c++"])
    out = tmp_path_factory.mktemp("sampler") / "sampler.so"
    sources = [Path(__file__).parent / "cpp" / "sampler_calls.cpp", CPP / "sampler.cpp"]
    subprocess.run(["c++", *FLAGS, "-shared", f"-I{CPP}", *map(str, sources), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def choose(library: ctypes.CDLL, how: How, logits: np.ndarray, history: list[int]) -> list[int]:
    ids, past = np.empty(COUNT, np.int64), np.array(history, np.int64)
    numbers = [ctypes.c_float(value) for value in (how.top_p, how.min_p, how.penalty)]
    library.choose(
        ctypes.c_float(how.temperature), ctypes.c_int32(how.top_k), *numbers, ctypes.c_uint64(how.seed),
        ctypes.c_void_p(logits.ctypes.data), ctypes.c_size_t(len(logits)),
        ctypes.c_void_p(past.ctypes.data), ctypes.c_size_t(len(past)),
        ctypes.c_void_p(ids.ctypes.data), ctypes.c_size_t(COUNT),
    )  # fmt: skip
    return ids.tolist()


CASES = [
    How(temperature=0),
    How(temperature=0, penalty=1.7),
    How(),
    How(temperature=0.3),
    How(top_k=1),
    How(top_k=7),
    How(top_k=10_000),
    How(top_p=0.8),
    How(top_p=0.0001),
    How(min_p=0.1),
    How(min_p=1.0),
    How(penalty=1.3),
    How(temperature=1.5, top_k=40, top_p=0.9, min_p=0.05, penalty=1.1),
]


@pytest.mark.parametrize("how", CASES, ids=str)
def test_choices_are_those_of_numpy(how: How, library: ctypes.CDLL) -> None:
    random, chosen = np.random.default_rng(0), set()
    for trial in range(20):
        logits = (4 * random.standard_normal(1000)).astype(np.float32)
        if trial % 2:
            logits = np.round(logits)  # many equals
        history = random.integers(0, 1000, 30).tolist() + [int(logits.argmax())]
        case = replace(how, seed=int(random.integers(1 << 63)) * 2 + trial % 2)
        found = choose(library, case, logits, [-1 - (1 << 60), *history, -7])  # a picture counts for nothing
        assert found == reference(case, logits, history)
        chosen |= set(found)
    assert len(chosen) > 5


def test_extreme_logits(library: ctypes.CDLL) -> None:
    logits = np.full(8, -np.inf, np.float32)
    assert choose(library, How(), logits, []) == [-1] * COUNT
    logits[3] = 5
    assert choose(library, How(), logits, []) == [3] * COUNT
    logits[5] = np.nan
    for how in (How(), How(temperature=0)):
        assert choose(library, how, logits, []) == [-1] * COUNT
    logits[5] = np.inf
    assert choose(library, How(), logits, []) == [-1] * COUNT
    huge = np.array([1e38, -1e38, 1e38, 0], np.float32)
    assert set(choose(library, How(temperature=0.001), huge, [])) == {0, 2}


def test_the_seed_decides(library: ctypes.CDLL) -> None:
    logits = np.zeros(1000, np.float32)
    first, again, other = (choose(library, How(seed=seed), logits, []) for seed in (1, 1, 2))
    assert first == again != other
    # Fixed for all platforms: splitmix64 from 1, over 1000 equal ids.
    assert first[:4] == [int(1000 * u) for u in uniforms(1)[:4]]
