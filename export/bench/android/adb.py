"""The adb program, as functions: devices, shell with exit codes, push, pull, properties.

Knows nothing of models and results. Every wait ends: at its time-out, when `stop` is set, or when the device is gone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import BadInput
from export.bench.outcome import Interrupted, TimedOut, Unplugged
from export.bench.process import start

LOST = "not found|no devices|offline|unauthorized|authorizing|closed|disconnected|reset|protocol fault"
GONE = re.compile(rf"^(adb: )?error: .*({LOST})", re.MULTILINE)  # adb's own lines, not those of a command over there
NO_NUMBERS = ("", "unknown", "0123456789ABCDEF")  # what phones without a serial number call it
SHORT_S = 60.0  # for commands that only ask
STATES = {
    "unauthorized": "does not trust this computer yet: unlock it and allow USB debugging",
    "offline": "is offline: unplug it and plug it in again",
    "authorizing": "does not trust this computer yet: unlock it and allow USB debugging",
    "no permissions": "may not be used by this user: adb says {state}",
}


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str


class Adb:
    """The adb program; BadInput where there is none."""

    def __init__(self) -> None:
        path = shutil.which("adb")
        if path is None:
            raise BadInput("adb is not installed or not on the PATH: it comes with Android's platform-tools")
        self.path = path

    def devices(self) -> dict[str, str]:
        """Serials and states (device, offline, unauthorized, …) of all that adb sees."""
        try:
            done = subprocess.run([self.path, "devices"], capture_output=True, text=True, timeout=SHORT_S)
        except subprocess.TimeoutExpired:
            raise BadInput(f"adb devices does not answer within {SHORT_S:g} s") from None
        if done.returncode:
            raise BadInput(f"adb devices failed: {_last(done.stderr or done.stdout)}")
        # A tab stands between serial and state; some builds of adb write blanks. Neither is in a serial.
        lines = [line.split(None, 1) for line in done.stdout.splitlines() if not line.startswith(("List of ", "*"))]
        return {line[0]: line[1].strip() for line in lines if len(line) == 2}

    def choose(self, wanted: Sequence[str]) -> list[str]:
        """The serials to use: `wanted`, else ANDROID_SERIAL as for adb, else the only device there is.

        BadInput says why there is none. A phone that is listed twice, by cable and by network, is one device.
        """
        found = self.devices()
        if not wanted and (named := os.environ.get("ANDROID_SERIAL")):
            wanted = [named]
        if not wanted:
            phones = self._phones([serial for serial, state in found.items() if state == "device"])
            if len(phones) > 1:
                names = ", ".join(" or ".join(serials) for serials in phones)
                raise BadInput(f"{len(phones)} devices are connected ({names}): choose with --serial")
            if phones:
                return phones[0][:1]
            if not found:
                raise BadInput("no device is connected: plug a phone in and switch USB debugging on")
            wanted = list(found)[:1]
        for serial in wanted:
            state = found.get(serial)
            if state is None:
                there = f"connected: {', '.join(found)}" if found else "nothing is connected"
                raise BadInput(f"no device has the serial {serial}, {there}")
            if state != "device":
                said = next((text for key, text in STATES.items() if state.startswith(key)), "is not ready: {state}")
                raise BadInput(f"{serial} {said.format(state=state)}")
        if len(set(wanted)) < len(wanted) or (len(wanted) > 1 and len(self._phones(wanted)) < len(wanted)):
            raise BadInput(f"--serial names a device twice: {', '.join(wanted)}")
        return list(wanted)

    def _phones(self, serials: Sequence[str]) -> list[list[str]]:
        """The names of each phone, that of its cable first: names of which the same is said are one phone's."""
        if len(serials) < 2:
            return [[serial] for serial in serials]
        phones = dict[str, list[str]]()
        for serial in sorted(serials, key=lambda serial: ":" in serial or "._adb" in serial):
            phones.setdefault(self._identity(serial), []).append(serial)
        return list(phones.values())

    def _identity(self, serial: str) -> str:
        """What only this phone says; its name where it says nothing."""
        device = Device(self, serial, threading.Event())
        try:
            number, boot = device.getprop("ro.serialno"), device.ask("cat /proc/sys/kernel/random/boot_id")
        except (Unplugged, TimedOut):
            return serial
        # Emulators and cheap phones share their serial number, but no two of them one start.
        return f"{number} {boot}" if boot or number not in NO_NUMBERS else serial


class Device:
    """One device. Methods raise Unplugged, TimedOut, and Interrupted once `stop` is set."""

    def __init__(self, adb: Adb, serial: str, stop: threading.Event) -> None:
        self.adb, self.serial, self.stop = adb, serial, stop
        self.cleaning = False  # then `stop` is not heeded

    def connected(self) -> bool:
        """Whether adb can talk to it."""
        try:
            done = subprocess.run(
                [self.adb.path, "-s", self.serial, "get-state"], capture_output=True, text=True, timeout=10
            )
        except subprocess.TimeoutExpired:
            return False
        return done.stdout.strip() == "device"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """adb with these arguments, its output to be read as it comes."""
        return start([self.adb.path, "-s", self.serial, *arguments])

    def call(self, *arguments: str, timeout_s: float, tick: Callable[[], object] = lambda: None) -> Done:
        """adb with these arguments to its end; `tick` is called a few times a second meanwhile."""
        process = self.start(*arguments)
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=0.25)
                    break
                except subprocess.TimeoutExpired:
                    pass
                if self._stopped():
                    raise Interrupted
                if time.monotonic() > deadline:
                    raise TimedOut(f"adb {' '.join(arguments)[:120]}") if self.connected() else Unplugged(self.serial)
                tick()
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        done = Done(process.returncode, out, err)
        if done.code and (GONE.search(err) or not self.connected()):
            raise Unplugged(self.serial)
        return done

    def hash(self, path: str, timeout_s: float) -> str:
        """sha256 of a file of the device, read over the line; `path` is quoted for its shell."""
        digest, deadline = hashlib.sha256(), time.monotonic() + timeout_s
        with subprocess.Popen(
            [self.adb.path, "-s", self.serial, "exec-out", f"cat {path}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:

            def watch() -> None:
                while process.poll() is None and time.monotonic() < deadline and not self._stopped():
                    time.sleep(0.25)
                process.kill()

            threading.Thread(target=watch, daemon=True).start()
            assert process.stdout is not None
            while piece := process.stdout.read(1 << 20):
                digest.update(piece)
        if self._stopped():
            raise Interrupted
        if process.returncode:
            raise TimedOut(f"adb exec-out cat {path}") if self.connected() else Unplugged(self.serial)
        return digest.hexdigest()

    def _stopped(self) -> bool:
        return self.stop.is_set() and not self.cleaning

    def shell(self, command: str, timeout_s: float = SHORT_S) -> Done:
        """A command line for the device's shell; its exit code is the result's."""
        return self.call("shell", command, timeout_s=timeout_s)

    def ask(self, command: str) -> str:
        """What a command prints, stripped; empty where it fails."""
        done = self.shell(command)
        return "" if done.code else done.out.strip()

    def getprop(self, name: str) -> str:
        """A system property, empty where there is none."""
        return self.ask(f"getprop {name}")

    def push(self, local: Path, remote: str, timeout_s: float, tick: Callable[[], object] = lambda: None) -> Done:
        """Copy a file to the device."""
        return self.call("push", str(local), remote, timeout_s=timeout_s, tick=tick)

    def read(self, remote: str) -> str | None:
        """A text file of the device; None where there is none."""
        done = self.shell(f"cat {shlex.quote(remote)}")
        return None if done.code else done.out


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
