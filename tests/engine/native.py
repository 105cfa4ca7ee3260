"""What the tests of the C++ engine share: its greedy answers and those of the Python runtime, processes, damage."""

from __future__ import annotations

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from export.engine.native import Loaded, NativeEngine, Sampling
from export.engine.session import Session
from tests.tools import need

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100, 33, 10]
COUNT = 24
GREEDY = Sampling(max_new_tokens=COUNT, ignore_eos=True)


def need_compiler() -> None:
    """The engine is compiled on first use."""
    need("phone", [] if shutil.which("c++") else ["c++"])


def need_cmake() -> None:
    """Parts that only the apps have are built by their CMake."""
    need("phone", [tool for tool in ("cmake", "ninja", "c++") if not shutil.which(tool)])


def greedy(session: Session, prompt: list[int], chunk: int) -> list[int]:
    """COUNT ids by the Python runtime."""
    ids = list(prompt)
    for start in range(0, len(prompt), chunk):
        logits = session.step(prompt[start : start + chunk], start)
    while True:
        ids.append(int(logits[-1].argmax()))
        if len(ids) == len(prompt) + COUNT:
            return ids[len(prompt) :]
        logits = session.step(ids[-1:], len(ids) - 1)


def load_and_answer(model: Path, folder: Path | None, chunk: int = 0) -> tuple[Loaded, list[int]]:
    with NativeEngine() as engine:
        return engine.load(model, folder, prefill_chunk=chunk), list(engine.generate(PROMPT, GREEDY).token_ids)


def pool(workers: int = 1) -> ProcessPoolExecutor:
    """New processes that only imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["export.engine.session"])
    return ProcessPoolExecutor(workers, context)


def only(folder: Path, suffix: str) -> Path:
    (found,) = folder.glob(f"*{suffix}")
    return found


def flip(path: Path, at: int = -1000, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for place in range(at, at + count):
        data[place] ^= 0x41
    path.write_bytes(data)
