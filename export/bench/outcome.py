"""What came of one device, and the words in between. Knows no device."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from checkpoints.errors import BadInput
from export.bench.results.result import Document


@dataclass(frozen=True)
class Outcome:
    """A device's document, if at least one repeat finished, and what went wrong, if something did."""

    name: str  # a serial, or the machine's
    document: Document | None
    problem: str | None = None
    interrupted: bool = False


class Unplugged(Exception):
    """The device cannot be reached any more."""


class TimedOut(Exception):
    """A command for a device did not end; the message is the command."""


class Interrupted(BaseException):
    """Ctrl-C, as a device's own thread is told of it."""


class Failed(BadInput):
    """A measurement ended early; `document` has the repeats that finished before."""

    def __init__(self, sentence: str, document: Document | None = None) -> None:
        super().__init__(sentence)
        self.document = document


SMALL_BYTES = 1_000_000  # arrive before a bar could be read


class Watch:
    """Lines and bars on stderr, of several devices at once."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._lock = threading.Lock()
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn()]
        left, terminal = [TextColumn("left"), TimeRemainingColumn()], self.console.is_terminal
        self._progress = Progress(*columns, *left, console=self.console, transient=True, disable=not terminal)

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, name: str, text: str) -> None:
        with self._lock:
            self.console.print(f"[bold]{escape(name)}[/] {escape(text)}", soft_wrap=True, highlight=False)

    @contextlib.contextmanager
    def bar(self, name: str, text: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A bar for a terminal; the function takes the bytes that are done."""
        if total_bytes < SMALL_BYTES:
            yield lambda done: None
            return
        task = self._progress.add_task(f"{name} {text}", total=total_bytes)
        try:
            yield lambda done: self._progress.update(task, completed=done)
        finally:
            self._progress.remove_task(task)


def wait_for(futures: Sequence[Future[Outcome]], stop: threading.Event) -> None:
    """Until all are done; the first Ctrl-C asks them to stop, the second is not caught."""
    while True:
        try:
            while not all(future.done() for future in futures):
                wait(futures, timeout=0.5)
            return
        except KeyboardInterrupt:
            if stop.is_set():
                raise
            stop.set()


def slug(text: str) -> str:
    """For file names: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "device"
