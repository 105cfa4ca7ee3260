"""An Android device over adb: what it is, whether a model fits, and files on it, whole or not at all.

Knows nothing of the app and of results.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.android.adb import Device
from export.bench.contract import THERMAL
from export.bench.files import Local, local_file
from export.bench.memory import kib_of
from export.bench.outcome import Failed, Interrupted, TimedOut, Unplugged, Watch
from export.bench.results.numbers import size

FOLDER = "/data/local/tmp/pocketphi"  # apps may read there
PARTIAL = ".partial"
MIN_SDK = 26  # Android 8: what ExecuTorch's library is built for
SLOWEST_BYTES_PER_S = 1e6  # below that a push is given up
HASHERS = ("sha256sum", "toybox sha256sum", "busybox sha256sum")


class Phone:
    """A device and, after `look`, what it says of itself. Sentences begin with its serial."""

    def __init__(self, device: Device, watch: Watch) -> None:
        self.device, self.watch, self.serial = device, watch, device.serial
        self.doing = "asked what it is"  # for the sentence when it is gone
        self.sdk, self.abis, self.meminfo = 0, tuple[str, ...](), ""

    def look(self) -> None:
        """Ask the device what the checks need."""
        sdk = self.device.getprop("ro.build.version.sdk")
        self.sdk = int(sdk) if sdk.isdigit() else 0
        self.abis = tuple(filter(None, self.device.getprop("ro.product.cpu.abilist").split(",")))
        self.meminfo = self.device.ask("cat /proc/meminfo")

    def say(self, text: str) -> None:
        self.watch.say(self.serial, text)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn the loss of the device into a sentence."""
        try:
            yield
        except Unplugged:
            raise Failed(f"{self.serial} was unplugged while it was {self.doing}") from None
        except TimedOut as problem:
            raise Failed(f"{self.serial} did not answer while it was {self.doing}: time-out of {problem}") from None

    def facts(self) -> dict[str, Any]:
        """The device, as the result wants it."""
        ask = self.device.getprop
        maker, model = ask("ro.product.manufacturer"), ask("ro.product.model")
        named = model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
        processors = self.device.ask("grep -c ^processor /proc/cpuinfo")
        return {
            "kind": "android",
            "model": named.strip() or "unknown",
            "soc": ask("ro.soc.model") or ask("ro.board.platform") or None,
            "ram_bytes": kib_of(self.meminfo, "MemTotal"),
            "os": "Android",
            "os_version": ask("ro.build.version.release") or str(self.sdk),
            "abi": self.abis[0] if self.abis else "unknown",
            "cores": int(processors) if processors.isdigit() and int(processors) else None,
            "serial": self.serial,
        }

    def thermal(self) -> dict[str, Any]:
        """Thermal status and battery, now; unknown or None for what this Android does not tell."""
        battery = self.device.ask("dumpsys battery")
        service = self.device.ask("dumpsys thermalservice")
        saver = self.device.ask("settings get global low_power")
        level, scale = _number(battery, r"level: (\d+)"), _number(battery, r"scale: (\d+)") or 100
        tenths = _number(battery, r"temperature: (-?\d+)")
        status = _number(service, r"Thermal Status: (\d+)")
        known = status is not None and status < len(THERMAL) - 1  # the last is unknown
        return {
            "status": THERMAL[int(status)] if known and status is not None else "unknown",
            "battery_celsius": None if tenths is None else tenths / 10,
            "battery_percent": None if level is None else min(100.0, 100 * level / scale),
            "low_power_mode": {"0": False, "1": True}.get(saver),
        }

    # ------------------------------------------------------------------------------------------ checks before a push

    def check_system(self, abis: Sequence[str], what: str) -> None:
        """Raise BadInput unless Android is new enough and one of `abis` runs here."""
        if not self.abis:
            raise BadInput(f"{self.serial} is not an Android device: it names no ABI")
        if self.sdk < MIN_SDK:
            raise BadInput(f"{self.serial} has Android API level {self.sdk}, {what} needs {MIN_SDK} (Android 8)")
        if not set(abis) & set(self.abis):
            raise BadInput(f"{self.serial} runs {', '.join(self.abis)} programs, {what} is for {' or '.join(abis)}")

    def check_memory(self, weights_bytes: int, planned_bytes: int | None, ignore: bool) -> None:
        """Raise BadInput unless weights, KV cache and activations fit into what is free now."""
        total, free = kib_of(self.meminfo, "MemTotal"), kib_of(self.meminfo, "MemAvailable")
        needed = weights_bytes + (planned_bytes or 0)
        if ignore or free is None or needed <= free:
            return
        parts = f"{size(weights_bytes)} of weights" + (f", {size(planned_bytes)} planned" if planned_bytes else "")
        raise BadInput(
            f"{self.serial}: the model needs {size(needed)} of memory ({parts}), this phone has {size(free)} free "
            f"of {size(total or 0)}: close apps, or try all the same with --ignore-memory"
        )

    def check_space(self, needed: int) -> None:
        """Raise BadInput unless so many bytes can be written to the folder."""
        lines = self.device.ask(f"df -k {shlex.quote(str(Path(FOLDER).parent))}").splitlines()
        fields = lines[-1].split() if lines else []
        at = next((index for index, field in enumerate(fields) if field.endswith("%")), 0)
        if at and fields[at - 1].isdigit() and needed > (free := int(fields[at - 1]) * 1024):
            raise BadInput(
                f"{self.serial}: the files need {size(needed)} in {FOLDER}, this phone has {size(free)} free"
            )

    # ------------------------------------------------------------------------------------------------------- files

    def sync(self, files: Sequence[Local]) -> None:
        """Put the files into FOLDER, those left out that are already there with the same size and hash.

        BadInput for a file that changes meanwhile and for a full device; nothing half-pushed stays.
        """
        self.doing = "looked through for files"
        quoted = shlex.quote(FOLDER)
        self._run(f"mkdir -p {quoted} && chmod 755 {quoted} && rm -f {quoted}/*{PARTIAL}")
        missing = [file for file in files if not self._has(file)]
        for file in files:
            if file not in missing and file.size_bytes > 1e6:
                self.say(f"{file.name} is there already")
        self.check_space(sum(file.size_bytes for file in missing))
        for file in missing:
            self._push(file)

    def remove(self, names: Sequence[str]) -> None:
        """Delete files of FOLDER; those that are not there are no fault."""
        if names:
            self.device.shell("rm -f " + " ".join(shlex.quote(f"{FOLDER}/{name}") for name in names))

    def _has(self, file: Local) -> bool:
        path = shlex.quote(f"{FOLDER}/{file.name}")
        if self.device.ask(f"stat -c %s {path}") != str(file.size_bytes):
            return False
        return self._hash(path, file.size_bytes) == file.sha256

    def _hash(self, path: str, size_bytes: int) -> str:
        """sha256 of a file there; `path` is quoted. Where no program of the phone's makes one it is read back."""
        attempts = " || ".join(f"{program} {path} 2>/dev/null" for program in HASHERS)
        done = self.device.shell(attempts, timeout_s=60 + size_bytes / 2e7)
        if found := re.search(r"^\\?([0-9a-f]{64})\b", done.out, re.MULTILINE):
            return found[1]
        return self.device.hash(path, 60 + size_bytes / SLOWEST_BYTES_PER_S)

    def _push(self, file: Local) -> None:
        aside = shlex.quote(partial := f"{FOLDER}/{file.name}{PARTIAL}")
        self.doing = f"given {file.name}"
        try:
            self._copy(file, partial, aside)
            found = self._hash(aside, file.size_bytes)
            if found != file.sha256:
                again = local_file(file.path)
                if again.sha256 != file.sha256:
                    raise BadInput(f"{file.path} changed while it was pushed to {self.serial}")
                raise BadInput(
                    f"{self.serial}: {file.name} arrived with sha256 {found[:12]}…, it has {file.sha256[:12]}…"
                )
            target = shlex.quote(f"{FOLDER}/{file.name}")
            self._run(f"chmod 644 {aside} && mv -f {aside} {target}")
        except BaseException:
            self.device.cleaning = True
            with contextlib.suppress(Unplugged, TimedOut):
                self.device.shell(f"rm -f {aside}", timeout_s=10)
            raise
        if file.size_bytes > 1e6:
            self.say(f"{file.name} pushed, {size(file.size_bytes)}")

    def _copy(self, file: Local, partial: str, aside: str) -> None:
        with self.watch.bar(self.serial, file.name, file.size_bytes) as show:
            stop = threading.Event()

            def look() -> None:  # adb shows how far it is to terminals only
                asker = Device(self.device.adb, self.serial, self.device.stop)
                while not stop.wait(0.5):
                    with contextlib.suppress(Unplugged, TimedOut, Interrupted):
                        if (done := asker.ask(f"stat -c %s {aside}")).isdigit():
                            show(int(done))

            looker = threading.Thread(target=look, daemon=True)
            looker.start()
            try:
                done = self.device.push(file.path, partial, 60 + file.size_bytes / SLOWEST_BYTES_PER_S)
            finally:
                stop.set()
                looker.join()
        if done.code:
            lines = [line.strip() for line in (done.out + "\n" + done.err).splitlines() if line.strip()]
            if any("No space left" in line for line in lines):
                raise BadInput(f"{self.serial} has no space left for {file.name} ({size(file.size_bytes)})")
            said = next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")
            raise BadInput(f"{self.serial}: {file.name} could not be pushed: {said}")

    def _run(self, command: str) -> None:
        done = self.device.shell(command)
        if done.code:
            raise BadInput(f"{self.serial}: {command[:80]} failed: {(done.err or done.out).strip()[:200]}")


def _number(text: str, pattern: str) -> float | None:
    match = re.search(pattern, text)
    return float(match[1]) if match else None
