"""Shows how far a long command is, what memory it takes and how long is left, on stderr.

A terminal gets live bars; anything else gets one line a stage. Knows nothing of the work itself.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def memory_bytes() -> int:
    """Private resident memory of this process and its children (mapped files, which can be dropped, left out)."""
    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            info = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - getattr(info, "shared", 0)
    return total


def quiet(verbose: bool) -> None:
    """Hide upstream's warnings and logs unless asked for; ours go to the console, not to `logging`."""
    if not verbose:
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)


class _Memory(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: object) -> Text:
        return Text(f"{memory_bytes() / 1e9:4.1f} GB memory", style="magenta")


class Counter:
    """Bytes done so far, for `Stages.begin`."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, size: int) -> None:
        self.value += size


class Stages:
    """Bars of stages that may run side by side, and the peak of memory over all of them."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.peak_bytes = 0
        self._begun: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._asked: dict[str, Callable[[], int]] = {}
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            _Memory(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def begin(self, name: str, total: int | None = None, done: Callable[[], int] | None = None) -> None:
        """Start a stage; `total` is in bytes, None where it cannot be foreseen; `done` is asked how far it is."""
        self._begun[name] = time.monotonic()
        if done is not None:
            self._asked[name] = done
        self._tasks[name] = self._progress.add_task(name, total=total)

    def update(self, name: str, done: int) -> None:
        self._progress.update(self._tasks[name], completed=done)

    def describe(self, name: str, text: str) -> None:
        self._progress.update(self._tasks[name], description=text)

    def end(self, name: str, seconds: float | None = None) -> None:
        """Finish a stage; `seconds` where it ended before this call."""
        self._asked.pop(name, None)
        self.seconds[name] = round(time.monotonic() - self._begun[name] if seconds is None else seconds, 2)
        task = self._progress.tasks[self._tasks[name]]
        self._progress.update(task.id, completed=task.total or 1, total=task.total or 1, description=name)
        if not self.console.is_terminal:
            print(f"{name}: {self.seconds[name]:.1f} s, {memory_bytes() / 1e9:.1f} GB memory", file=sys.stderr)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        self.begin(name, total)
        yield lambda done: self.update(name, done)
        self.end(name)

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.25):
            self.peak_bytes = max(self.peak_bytes, memory_bytes())
            for name, done in list(self._asked.items()):
                self.update(name, done())

    @contextmanager
    def running(self) -> Iterator[Stages]:
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        watcher.start()
        try:
            with self._progress:
                yield self
        finally:
            stop.set()
            watcher.join()


@contextmanager
def bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr of `total` bytes, fed with the bytes of each piece."""
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        update(done)

    stages = Stages()
    with stages.running(), stages.stage(name, total) as update:
        yield add


Counting = Callable[[str, int, int], object]  # takes what is at work, how many are done, and of how many


@contextmanager
def counting(passing: bool = False) -> Iterator[Counting]:
    """A bar on stderr of things that are counted, with the time left; nothing where stderr is no terminal.

    It stays on the screen unless `passing`.
    """
    console = Console(file=sys.stderr)  # this one: `native_errors` puts another in its place for a while
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=passing,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task("reading", total=None)
        yield lambda what, done, of: bars.update(task, description=escape(what), completed=done, total=of)
