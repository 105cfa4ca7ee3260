"""Why the Android app is gone: from the system's log and its list of exits. Says nothing that these do not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from export.bench.android.adb import Device
from export.bench.android.app import PACKAGE


def alive(device: Device) -> bool:
    """Whether a process of the app runs."""
    return bool(device.ask(f"pidof {PACKAGE}"))


def post_mortem(device: Device, since: str, pid: int | None, last_memory: str) -> str:
    """Why the app is gone, in a sentence without a subject, as far as the system's log and list of exits tell."""
    log = device.ask(f"logcat -d -v brief -T {shlex.quote(since)}").splitlines()
    info = device.ask(f"dumpsys activity exit-info {PACKAGE}") if pid else ""
    if cause := crash_cause(log, pid):
        return f"the app crashed: {cause}"
    record = re.search(rf"pid={pid}\b.*?(?=\n *ApplicationExitInfo #|\Z)", info, re.DOTALL)
    listed = record[0] if record else ""
    known = re.search(r"reason=\d+ \(([A-Z_ ]+)\)", listed)
    reason = known[1].replace("_", " ").lower() if known else None
    # Android 17 ends processes by their anonymous memory and swap: the reason is OTHER, only the description says so.
    if limiter := re.search(r"MemoryLimiter(:\w+)?", listed):
        return f"the system ended the app because it used too much memory ({limiter[0]}), {last_memory}"
    if reason == "low memory" or killed_for_memory(log, pid):
        return f"the system killed the app to free memory, {last_memory}"
    if reason:
        return f"the app's process is gone, the system names the reason {reason}; {last_memory}"
    return f"the app's process is gone, and the system does not say why; {last_memory}"


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
