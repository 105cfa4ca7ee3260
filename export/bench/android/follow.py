"""What the Android app says of a run: from the system's log, and from its own file where that is silent.

Some phones have the log switched off or end logcat at once; the app writes the same lines into a file beside its
result.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator

from export.bench.android.adb import Device
from export.bench.app_run import Event
from export.bench.outcome import Unplugged
from export.bench.process import TICK_S, lines

TAG = "Pocketphi"
QUIET_S = 5.0  # the app says something every two seconds; after this it is looked for
ASK_S = 2.0  # between two looks into the file, which cost the phone a process
LONGEST_S = 10.0  # before logcat is started again


class Follow:
    """Events of one run, each once."""

    def __init__(self, device: Device, run: str, file: str) -> None:
        self.device, self.run, self.file = device, run, file
        self.since = device.ask("date '+%m-%d %H:%M:%S.000'")
        self._seen, self._read_bytes = set[str](), 0
        self._process: subprocess.Popen[str] | None = None
        self._lines: Iterator[str | None] = iter(())
        self._open_at, self._wait_s = time.monotonic(), 0.5
        self._heard = self._asked = time.monotonic()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def events(self) -> Iterator[Event | None]:
        """Events as they come; None a few times a second when there is none. Raises Unplugged."""
        while True:
            if self._process is None and time.monotonic() >= self._open_at:
                self._process = self.device.start("logcat", "-v", "raw", "-T", self.since, "-s", f"{TAG}:I")
                self._lines = lines(self._process)
            try:
                line = next(self._lines)
            except StopIteration:
                self._ended()
                line = None
            events = self._new([line]) if line else []
            now = time.monotonic()
            if not events and now - self._heard > QUIET_S and now - self._asked > ASK_S:
                events = self.ask()
            if events:
                self._heard = time.monotonic()
                yield from events
            else:
                yield None

    def ask(self) -> list[Event]:
        """What the app's file has that was not heard yet."""
        self._asked = time.monotonic()
        done = self.device.shell(f"tail -c +{self._read_bytes + 1} {shlex.quote(self.file)} 2>/dev/null")
        text = "" if done.code else done.out
        whole = text[: text.rfind("\n") + 1]
        self._read_bytes += len(whole.encode())
        return self._new(whole.splitlines())

    def _ended(self) -> None:
        """logcat has: begun anew a while later, where the phone is still there."""
        if self._process is None:
            time.sleep(TICK_S)
            return
        self.close()
        self._process = None
        if not self.device.connected():
            raise Unplugged(self.device.serial)
        self._open_at = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, LONGEST_S)

    def _new(self, lines: list[str]) -> list[Event]:
        found = []
        for line in (line.strip() for line in lines):
            if line in self._seen:
                continue
            self._seen.add(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue  # logcat's own "beginning of main", or a line cut by the log's length
            if isinstance(event, dict) and event.get("run") == self.run:
                found.append(event)
        return found
