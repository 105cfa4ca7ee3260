"""The Android app on a device: its version, its installation, a run of it (docs/app_protocol.md) and how it ended.

Knows nothing of where results go.
"""

from __future__ import annotations

import json
import queue
import re
import secrets
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.android.adb import Device
from export.bench.android.phone import Phone
from export.bench.outcome import Unplugged

PACKAGE = "org.pocketphi.bench"
ACTIVITY = f"{PACKAGE}/.HeadlessActivity"
ABIS = ("arm64-v8a", "x86_64")
RESULTS = f"/sdcard/Android/data/{PACKAGE}/files/results"
TAG = "Pocketphi"
QUIET_S = 5.0  # the app says something every two seconds; after this it is looked for
GRADLE_S = 1800.0


@dataclass(frozen=True)
class Apk:
    """A file to install; its version where it can be told."""

    path: Path
    version_code: int | None
    version_name: str | None


def read_apk(path: Path) -> Apk:
    """The version from Gradle's metadata beside the APK, else from aapt2; BadInput where it is no APK."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    if head != b"PK\x03\x04":
        raise BadInput(f"{path} is no APK: its first bytes are {head!r}, not b'PK\\x03\\x04'")
    if (metadata := path.with_name("output-metadata.json")).is_file():
        try:
            for element in json.loads(metadata.read_text())["elements"]:
                if element["outputFile"] == path.name:
                    return Apk(path, int(element["versionCode"]), str(element["versionName"]))
        except (ValueError, KeyError, TypeError) as problem:
            raise BadInput(f"{metadata} is no metadata of Gradle's: {type(problem).__name__} {problem}") from None
    if aapt2 := shutil.which("aapt2"):
        done = subprocess.run([aapt2, "dump", "badging", str(path)], capture_output=True, text=True, errors="replace")
        if match := re.search(r"name='([^']*)' versionCode='(\d+)' versionName='([^']*)'", done.stdout):
            if match[1] != PACKAGE:
                raise BadInput(f"{path} is the app {match[1]}, not {PACKAGE}")
            return Apk(path, int(match[2]), match[3])
    return Apk(path, None, None)


def build_apk(folder: Path) -> Path:
    """Build the app with its Gradle wrapper; BadInput with Gradle's reason where that fails."""
    gradle = folder / "gradlew"
    if not gradle.is_file():
        raise BadInput(f"--build needs {gradle}, which does not exist")
    try:
        done = subprocess.run(
            [str(gradle), "assembleRelease"], cwd=folder, capture_output=True, text=True, timeout=GRADLE_S
        )
    except OSError as problem:
        raise BadInput(f"{gradle} cannot be started: {problem.strerror}") from None
    except subprocess.TimeoutExpired:
        raise BadInput(f"{gradle} assembleRelease did not end within {GRADLE_S:g} s") from None
    if done.returncode:
        said = re.search(r"What went wrong:\n(.*)", done.stderr) or re.search(r"(.+)\s*$", done.stderr)
        raise BadInput(f"{gradle} assembleRelease failed: {said[1].strip()[:300] if said else done.returncode}")
    made = sorted(folder.glob("**/outputs/apk/release/*.apk"), key=lambda path: path.stat().st_mtime)
    if not made:
        raise BadInput(f"{gradle} assembleRelease made no APK under {folder}")
    return made[-1]


def install(phone: Phone, apk: Apk | None) -> None:
    """Install the app where it is missing or older than `apk`; BadInput where that fails."""
    package = phone.device.ask(f"dumpsys package {PACKAGE}")
    code = re.search(r"versionCode=(\d+)", package)
    installed = int(code[1]) if code and f"Package [{PACKAGE}]" in package else None
    if apk is None:
        if installed is None:
            raise BadInput(f"{phone.serial} does not have the app {PACKAGE}: give it with --apk, or --build it")
        return
    if installed is not None and apk.version_code is not None and installed >= apk.version_code:
        if installed > apk.version_code:
            phone.say(f"has version {installed} of the app, newer than the {apk.version_code} of {apk.path.name}")
        return
    phone.doing = f"given {apk.path.name}"
    # Not streamed: that way needs no more of the device than its package manager.
    done = phone.device.call("install", "--no-streaming", "-r", str(apk.path), timeout_s=300)
    if done.code or "Success" not in done.out + done.err:
        lines = [line.strip() for line in (done.out + "\n" + done.err).splitlines()]
        said = next((line for line in lines if "Failure" in line or "INSTALL_" in line), None) or "; ".join(lines)
        raise BadInput(f"{phone.serial}: {apk.path.name} could not be installed: {said.strip()[:300]}")
    phone.say(f"{apk.path.name} installed")


@dataclass(frozen=True)
class Order:
    """What the app is told to do, in the words of the protocol."""

    run: str
    extras: dict[str, str | int]

    def command(self) -> str:
        """The line for the device's shell that starts it."""
        parts = ["am", "start", "-W", "-n", ACTIVITY, "--es", "run", self.run]
        for key, value in self.extras.items():
            parts += ["--ei" if isinstance(value, int) else "--es", key, str(value)]
        return shlex.join(parts)


def new_run() -> str:
    """A name that no other run has."""
    return f"bench-{secrets.token_hex(6)}"


class Follow:
    """The app's lines about one run, from logcat; a broken connection to logcat is taken up again."""

    def __init__(self, device: Device, run: str) -> None:
        self.device, self.run = device, run
        self.since = device.ask("date '+%m-%d %H:%M:%S.000'")
        self._seen: set[str] = set()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._open()

    def _open(self) -> None:
        self._process = process = self.device.start("logcat", "-v", "raw", "-T", self.since, "-s", f"{TAG}:I")

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self._lines.put(line)
            self._lines.put(None)

        threading.Thread(target=read, daemon=True).start()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def events(self) -> Iterator[dict[str, Any] | None]:
        """Events as they come, each once; None a few times a second when there is none. Raises Unplugged."""
        while True:
            try:
                line = self._lines.get(timeout=0.25)
            except queue.Empty:
                yield None
                continue
            if line is None:
                if not self.device.connected():
                    raise Unplugged(self.device.serial)
                time.sleep(0.5)
                self._open()
                continue
            event = self._read(line)
            if event is not None:
                yield event

    def _read(self, line: str) -> dict[str, Any] | None:
        if line in self._seen:
            return None
        self._seen.add(line)
        try:
            event = json.loads(line)
        except ValueError:
            return None  # logcat's own "beginning of main", or a line cut by the log's length
        return event if isinstance(event, dict) and event.get("run") == self.run else None


def alive(device: Device) -> bool:
    """Whether a process of the app runs."""
    return bool(device.ask(f"pidof {PACKAGE}"))


def post_mortem(device: Device, since: str, pid: int | None, last_memory: str) -> str:
    """Why the app is gone, in a sentence without a subject: from the system's log and its list of exits."""
    log = device.ask(f"logcat -d -v brief -T {shlex.quote(since)}").splitlines()
    info = device.ask(f"dumpsys activity exit-info {PACKAGE}") if pid else ""
    if cause := crash_cause(log, pid):
        return f"the app crashed: {cause}"
    known = re.search(rf"pid={pid}\b.*?reason=\d+ \(([A-Z_ ]+)\)", info, re.DOTALL)
    reason = known[1].replace("_", " ").lower() if known else None
    if reason == "low memory" or killed_for_memory(log, pid):
        return f"the system killed the app to free memory, {last_memory}"
    said = f" ({reason})" if reason else ""
    died = "the app's process vanished without a word" + said
    return f"{died}, as when the system frees memory: {last_memory}" if reason in (None, "signaled") else died


def was_killed(device: Device, since: str, pid: int | None) -> bool:
    """Whether the low-memory killer ended the app: Android may bring it back, without its run."""
    return killed_for_memory(device.ask(f"logcat -d -v brief -T {shlex.quote(since)}").splitlines(), pid)


def crash_cause(log: Sequence[str], pid: int | None) -> str | None:
    """The first line of a Java or native crash of the app in a log of format "brief"; None without one."""
    messages = [(match[1], match[2]) for line in log if (match := re.match(r"./([^(]*?)\s*\(\s*\d+\): ?(.*)", line))]
    for at, (tag, message) in enumerate(messages):
        if tag == "AndroidRuntime" and message.startswith("FATAL EXCEPTION"):
            after = [text for kind, text in messages[at + 1 : at + 6] if kind == "AndroidRuntime"]
            if after and after[0].startswith("Process:"):
                if not after[0].startswith(f"Process: {PACKAGE},"):
                    continue
                after = after[1:]
            frame = next((text.strip() for text in after[1:] if text.strip().startswith("at ")), "")
            return " ".join(f"{after[0]} {frame}".split()) if after else message
        if tag == "libc" and message.startswith("Fatal signal") and (pid is None or f"pid {pid} " in message + " "):
            frame = next((text.strip() for kind, text in messages[at:] if kind == "DEBUG" and "#00 pc" in text), "")
            return " ".join(f"{message} {frame}".split())
    return None


def killed_for_memory(log: Sequence[str], pid: int | None) -> bool:
    """Whether the low-memory killer's lines name the app."""
    killers = re.compile(r"lowmemorykiller|lmkd|am_low_memory|Out of memory|oom-kill", re.IGNORECASE)
    number = rf"\b{pid}\b|" if pid else ""
    return any(killers.search(line) and re.search(number + re.escape(PACKAGE), line) for line in log)
