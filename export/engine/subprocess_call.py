"""Calls a function beside this process, in one of its own: for code that may end its process or keep its memory.

Imports nothing heavy: the new process must first send its stderr to a file, which is read when it dies.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from export.engine.native_output import last_line

P = ParamSpec("P")
T = TypeVar("T")


class ChildDied(Exception):
    """The process ended without a result; the message is the last line it wrote to stderr."""


class Child:
    """A new process that first imports the module named `imports`, then calls one function.

    A context manager: leaving it early, as on Ctrl-C, ends the process.
    """

    def __init__(self, imports: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "stderr")
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _log_to, (self._log,))
        self._future: Future[Any] = self._pool.submit(_import, imports)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._future.done():  # leaving the pool would wait for the function to end
            for process in (self._pool._processes or {}).values():
                process.terminate()
        self._pool.shutdown()
        self._folder.cleanup()

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """Call a picklable function with picklable arguments, in the background."""
        try:
            self._future = self._pool.submit(function, *args, **kwargs)
        except BrokenProcessPool as broken:  # it died of the import
            self._future = Future()
            self._future.set_exception(broken)
        return Call(self._future, self._log)


class Call(Generic[T]):
    """A function under way in a Child."""

    def __init__(self, future: Future[T], log: Path) -> None:
        self._future, self._log = future, log

    def check(self) -> None:
        """Raise what went wrong, if something has by now."""
        if self._future.done():
            self.result()

    def result(self) -> T:
        """Wait for the function's result, or its exception; ChildDied where the process ended without one."""
        try:
            return self._future.result()
        except BrokenProcessPool:
            log = self._log.read_text(errors="replace") if self._log.exists() else ""
            raise ChildDied(last_line(log)) from None


def _log_to(path: Path) -> None:
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)


def _import(module: str) -> None:
    importlib.import_module(module)
