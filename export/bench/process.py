"""Programs whose output is read as it comes."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Iterator, Sequence

TICK_S = 0.25


def start(command: Sequence[str], stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a program in a session of its own, for Ctrl-C is ours."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """Lines of its output without their ends, and None a few times a second when there is none; ends with it."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            found.put(line.rstrip("\r\n"))
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = found.get(timeout=TICK_S)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line
