"""Apple's devicectl (of Xcode 15 and newer) as functions: devices, apps, files in an app's container, launching.

Knows nothing of models and results. devicectl asks that programs read what it writes with --json-output and not what
it prints; only the lines of a launched app come from its stdout.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.outcome import Interrupted, TimedOut, Unplugged
from export.bench.process import start

SHORT_S = 60.0  # for commands that only ask
GONE = re.compile(
    r"(device|connection).{0,60}(disconnected|not found|was lost|invalidated|unavailable)", re.IGNORECASE
)


@dataclass(frozen=True)
class Done:
    """A finished command: its exit code, what --json-output holds, and its reason where it failed."""

    code: int
    result: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Apple:
    """A device that devicectl knows."""

    identifier: str
    udid: str  # as Xcode and Finder show it
    name: str
    model: str  # iPhone16,1
    platform: str  # iOS
    os_version: str
    paired: bool
    connected: bool


class Devicectl:
    """`xcrun devicectl`; BadInput where there is none. Methods raise Interrupted once `stop` is set, and TimedOut."""

    def __init__(self, stop: threading.Event) -> None:
        path = shutil.which("xcrun")
        if path is None:
            raise BadInput("xcrun is not installed or not on the PATH: it comes with Xcode, on a Mac")
        self.path, self.stop = path, stop
        self.cleaning = False  # then `stop` is not heeded

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """devicectl with these arguments, its output to be read as it comes."""
        return start([self.path, "devicectl", *arguments], stderr=subprocess.STDOUT)

    def call(self, *arguments: str, timeout_s: float = SHORT_S) -> Done:
        """devicectl with these arguments to its end."""
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder, "answer.json")
            process = self.start(*arguments, "--json-output", str(answer))
            deadline = time.monotonic() + timeout_s
            try:
                while True:
                    try:
                        out, _ = process.communicate(timeout=0.25)
                        break
                    except subprocess.TimeoutExpired:
                        pass
                    if self.stop.is_set() and not self.cleaning:
                        raise Interrupted
                    if time.monotonic() > deadline:
                        raise TimedOut(f"devicectl {' '.join(arguments)[:120]}")
            finally:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
            try:
                document = json.loads(answer.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                document = {}
        document = document if isinstance(document, dict) else {}
        result = document.get("result")
        reason = _reason(document) or _last_line(out) or f"exit code {process.returncode}"
        if process.returncode and GONE.search(reason):
            raise Unplugged(reason)
        return Done(process.returncode, result if isinstance(result, dict) else {}, reason)

    def devices(self) -> list[Apple]:
        """All devices that this Mac knows."""
        done = self.call("list", "devices")
        if done.code:
            raise BadInput(f"devicectl list devices failed: {done.reason}")
        return [_apple(item) for item in done.result.get("devices", []) if isinstance(item, dict)]

    def choose(self, wanted: Sequence[str]) -> list[Apple]:
        """The devices called `wanted` (identifier, UDID or name), else the only one that is connected."""
        found = self.devices()
        if not wanted:
            ready = [device for device in found if device.connected and device.platform == "iOS"]
            if len(ready) > 1:
                names = ", ".join(f"{device.name} ({device.identifier})" for device in ready)
                raise BadInput(f"{len(ready)} devices are connected ({names}): choose with --serial")
            if not ready:
                raise BadInput("no iPhone or iPad is connected: plug one in, unlock it and trust this Mac")
            chosen = ready
        else:
            chosen = [_called(name, found) for name in wanted]
        for device in chosen:
            if device.platform != "iOS":
                raise BadInput(f"{device.name} runs {device.platform}, the app is for iOS")
            if not device.paired:
                raise BadInput(f"{device.name} is not paired with this Mac: unlock it and trust this Mac")
            if not device.connected:
                raise BadInput(f"{device.name} is not connected: plug it in and unlock it")
        if len({device.identifier for device in chosen}) < len(chosen):
            raise BadInput(f"--serial names a device twice: {', '.join(wanted)}")
        return chosen


def _called(name: str, found: Sequence[Apple]) -> Apple:
    """The device of that identifier, UDID or name; BadInput where it is none's, or that of several."""
    called = [device for device in found if name in (device.identifier, device.udid)]
    called = called or [device for device in found if name == device.name]
    if not called:
        known = ", ".join(device.name for device in found) or "none"
        raise BadInput(f"no device is called {name}, this Mac knows: {known}")
    if len(called) > 1:
        identifiers = " or ".join(device.identifier for device in called)
        raise BadInput(f"{len(called)} devices are called {name}: choose with --serial {identifiers}")
    return called[0]


def _apple(item: dict[str, Any]) -> Apple:
    hardware, properties, connection = (
        item.get(key) or {} for key in ("hardwareProperties", "deviceProperties", "connectionProperties")
    )
    identifier = str(item.get("identifier", ""))
    return Apple(
        identifier=identifier,
        udid=str(hardware.get("udid") or identifier),
        name=str(properties.get("name") or identifier),
        model=str(hardware.get("productType") or hardware.get("marketingName") or "unknown"),
        platform=str(hardware.get("platform") or "unknown"),
        os_version=str(properties.get("osVersionNumber") or "unknown"),
        paired=connection.get("pairingState") == "paired",
        # a device that sleeps is "disconnected" and wakes up when asked; one that is not there is "unavailable"
        connected=connection.get("tunnelState") in ("connected", "disconnected"),
    )


def _reason(document: dict[str, Any]) -> str:
    """The innermost description of the error in a document of devicectl's; empty without one."""
    found, error = "", document.get("error")
    while isinstance(error, dict):
        info = error.get("userInfo")
        info = info if isinstance(info, dict) else {}
        description = info.get("NSLocalizedDescription")
        if isinstance(description, dict):
            description = description.get("string")
        found = str(description or found)
        under = info.get("NSUnderlyingError")
        error = under.get("error") if isinstance(under, dict) else None
    return found.strip()[:300]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ")[:300] if lines else ""
