"""Calls a function in a process of its own, for code that may end its process or keep its memory.

Imports nothing heavy: the new process must first send its stderr to a file, which is read when it dies.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ChildDied(Exception):
    """The process ended without a result; the message is the last line it wrote to stderr."""


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a picklable function with picklable arguments in a new process; its result, or its exception."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "stderr")
        with ProcessPoolExecutor(1, context, _log_to, (log,)) as pool:
            try:
                return pool.submit(function, *args, **kwargs).result()
            except BrokenProcessPool:
                pass
            except KeyboardInterrupt:  # leaving the pool would wait for the function to end
                for process in (pool._processes or {}).values():
                    process.terminate()
                raise
        raise ChildDied(last_line(log.read_text(errors="replace")))


def last_line(log: str) -> str:
    """The last line that says something, cut to 300 characters."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing to stderr"


def _log_to(path: Path) -> None:
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
