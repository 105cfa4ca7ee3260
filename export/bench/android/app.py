"""The Android app: its version, its installation, and the line that starts a run of it (docs/app_protocol.md)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import BadInput
from export.bench.android.phone import Phone

PACKAGE = "org.pocketphi.bench"
ACTIVITY = f"{PACKAGE}/.HeadlessActivity"
ABIS = ("arm64-v8a", "x86_64")
RESULTS = f"/sdcard/Android/data/{PACKAGE}/files/results"
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


def installed_version(phone: Phone) -> tuple[int | None, str]:
    """The version code of the app, None where the phone's current user does not have it; and whose it is then."""
    package = phone.device.ask(f"dumpsys package {PACKAGE}")
    code = re.search(r"versionCode=(\d+)", package)
    if code is None or f"Package [{PACKAGE}]" not in package:
        return None, ""
    # An app of another user's (a work profile, a second space) cannot be started for this one.
    user = phone.device.ask("am get-current-user")
    own = re.search(rf"^\s*User {user}:.*\binstalled=(true|false)", package, re.MULTILINE) if user.isdigit() else None
    return (None, f" for its user {user}, only for another") if own and own[1] == "false" else (int(code[1]), "")


def install(phone: Phone, apk: Apk | None) -> None:
    """Install the app where it is missing or older than `apk`; BadInput where that fails."""
    installed, whose = installed_version(phone)
    if apk is None:
        if installed is None:
            raise BadInput(
                f"{phone.serial} does not have the app {PACKAGE}{whose}: give it with --apk, or --build it"
            )
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
