"""Runs a command as a child and measures what it takes, inside a memory limit of the kernel's if asked.

Two peaks of memory, because they answer two questions. `private_peak_bytes` is memory that no file backs, over
all processes of the command: what it needs. `cgroup_peak_bytes` is all that the kernel charged to it, pages of
the files it read and wrote included: those fill whatever is free and are dropped under pressure, so this number
says that a limit held and not how much was needed. Knows nothing of what the command does.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from checkpoints.errors import BadInput

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[1]  # where `python -m` finds the packages
PACKAGES = ("torch", "executorch", "torchao", "transformers")
INTERVAL_S = 0.05  # between samples; a shorter peak can be missed
TAIL_CHARACTERS = 4000
CGROUPS = Path("/sys/fs/cgroup")
# Joins the group before the command starts, so that nothing of it is charged elsewhere.
JOIN = ("sh", "-c", 'echo $$ > "$0" && exec "$@"')


@dataclass(frozen=True)
class Measured:
    """One finished command."""

    command: tuple[str, ...]
    wall_s: float
    cpu_s: float  # user and system time of the command and of every child it waited for
    private_peak_bytes: int  # sampled
    cgroup_peak_bytes: int | None  # None where no cgroup could be made
    limit_bytes: int | None  # None when it ran unlimited
    limited_by: str  # what enforced or counted: "cgroup v1", "cgroup v2", "systemd-run", "nothing"
    exit_code: int  # negative: ended by that signal
    oom_killed: bool
    tail: str  # the last of its output, both streams

    @property
    def failure(self) -> str | None:
        """Why it did not finish, in a sentence; None if it did."""
        if self.oom_killed and self.exit_code:
            return f"killed for memory at {(self.limit_bytes or 0) / GIB:.2f} GiB"
        return f"exit code {self.exit_code}" if self.exit_code else None


def run(
    command: Sequence[str],
    limit_bytes: int | None = None,
    *,
    cwd: Path = ROOT,
) -> Measured:
    """Run `command` to its end, by default from the repository's folder.

    A limit that cannot be enforced here is not: then `limit_bytes` of the result is None and `limited_by`
    "nothing".
    """
    group = _Group.make(limit_bytes)
    limited_by = group.kind if group else "nothing"
    prefix: tuple[str, ...] = (*JOIN, str(group.folder / "cgroup.procs")) if group else ()
    if group is None and limit_bytes is not None and _systemd_works():
        limited_by, prefix = "systemd-run", _systemd(limit_bytes)
    if limited_by == "nothing":
        limit_bytes = None
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        process = subprocess.Popen(
            (*prefix, *command),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which then ends all of them
        )
        private_peak = oom_kills = 0
        cgroup_peak: int | None = None
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                counted = group or (_Group.of(process.pid) if limited_by == "systemd-run" else None)
                if counted:
                    cgroup_peak = max(cgroup_peak or 0, counted.peak_bytes()) or None
                    oom_kills = max(oom_kills, counted.oom_kills())
                private = counted.private_bytes() if counted else None
                if private is None and not pid:
                    private = private_bytes(_processes(process.pid))
                private_peak = max(private_peak, private or 0)
                if pid:
                    break
                time.sleep(INTERVAL_S)
            wall_s = time.monotonic() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if group:
                group.close()
        log.seek(max(0, log.tell() - 4 * TAIL_CHARACTERS))
        tail = log.read().decode(errors="replace")[-TAIL_CHARACTERS:]
    return Measured(
        command=tuple(command),
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        private_peak_bytes=private_peak,
        cgroup_peak_bytes=cgroup_peak,
        limit_bytes=limit_bytes,
        limited_by=limited_by,
        exit_code=process.returncode,
        oom_killed=oom_kills > 0,
        tail=tail,
    )


def taken(done: Measured, name: str) -> dict[str, float]:
    """Seconds and bytes of a command; BadInput with the last line it printed where it did not finish."""
    if done.failure:
        last = "".join(done.tail.strip().splitlines()[-1:]).removeprefix("error: ")
        raise BadInput(f"{name} did not finish ({done.failure}): {last}")
    return {key: getattr(done, key) for key in ("wall_s", "cpu_s", "private_peak_bytes")}


def private_bytes(processes: Sequence[psutil.Process]) -> int:
    """Resident memory of some processes without the pages of files, which can be dropped and read again.

    What a forked process still shares with its parent counts twice here, unlike in a cgroup.
    """
    total = 0
    for process in processes:
        try:
            info = process.memory_info()
        except psutil.Error:  # it ended meanwhile
            continue
        total += info.rss - getattr(info, "shared", 0)
    return total


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, swapped out or not: what Linux's killers, Android's too, count."""
    try:
        status = Path("/proc/self/status").read_text().split()
    except OSError:  # not Linux
        return int(psutil.Process().memory_full_info().uss)
    return sum(1024 * int(status[status.index(key) + 1]) for key in ("RssAnon:", "VmSwap:"))


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    cpu = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "cpu": cpu,
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        **packages,
    }


def drop_from_cache(path: Path) -> bool:
    """Ask the kernel to forget the cached pages of a file, so that the next read is from disk; whether it
    can."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())  # only clean pages can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _processes(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


@dataclass(frozen=True)
class _Group:
    """A memory cgroup, version 1 or 2."""

    kind: str
    folder: Path

    @classmethod
    def make(cls, limit_bytes: int | None) -> _Group | None:
        """A new group with this limit; None where this user or system has no memory controller to give."""
        for kind, parent, name in (
            ("cgroup v1", CGROUPS / "memory", "memory.limit_in_bytes"),
            ("cgroup v2", CGROUPS, "memory.max"),
        ):
            try:
                if kind == "cgroup v2":
                    if "memory" not in (parent / "cgroup.controllers").read_text().split():
                        continue
                    (parent / "cgroup.subtree_control").write_text("+memory")
                elif not (parent / name).exists():
                    continue
                group = cls(kind, Path(tempfile.mkdtemp(prefix="pocketphi-", dir=parent)))
            except OSError:
                continue
            try:
                if limit_bytes is not None:
                    (group.folder / name).write_text(str(limit_bytes))
                    group._forbid_swap(limit_bytes)
                return group
            except OSError:
                group.close()
        return None

    @classmethod
    def of(cls, pid: int) -> _Group | None:
        """The scope that systemd-run made for a process; None before it did."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return None
        paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/") and "/run-" in line]
        return cls("systemd-run", CGROUPS / paths[0]) if paths else None

    def _forbid_swap(self, limit_bytes: int) -> None:
        """Otherwise a machine with swap would let the command grow beyond its limit, only slower."""
        for name, value in (("memory.memsw.limit_in_bytes", limit_bytes), ("memory.swap.max", 0)):
            if (self.folder / name).exists():
                (self.folder / name).write_text(str(value))

    def peak_bytes(self) -> int:
        """0 where the kernel does not keep it (memory.peak came with Linux 5.19)."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            try:
                return int((self.folder / name).read_text())
            except OSError:
                continue
        return 0

    def private_bytes(self) -> int | None:
        """Memory in use now that no file backs; None where the kernel does not say."""
        try:
            words = (self.folder / "memory.stat").read_text().split()
        except OSError:
            return None
        for key in ("total_rss", "anon"):  # version 1, version 2
            if key in words:
                return int(words[words.index(key) + 1])
        return None

    def oom_kills(self) -> int:
        for name in ("memory.oom_control", "memory.events"):
            try:
                words = (self.folder / name).read_text().split()
                return int(words[words.index("oom_kill") + 1])
            except (OSError, ValueError):
                continue
        return 0

    def members(self) -> list[int]:
        try:
            return [int(word) for word in (self.folder / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def close(self) -> None:
        """Remove the group, ending what the command left running."""
        for _ in range(100):
            for pid in self.members():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self.folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:  # the last member is still being torn down
                time.sleep(0.05)


def _systemd(limit_bytes: int) -> tuple[str, ...]:
    properties = (f"MemoryMax={limit_bytes}", "MemorySwapMax=0")
    flags = [flag for value in properties for flag in ("-p", value)]
    return ("systemd-run", "--user", "--scope", "--quiet", *flags, "--")


@cache
def _systemd_works() -> bool:
    if shutil.which("systemd-run") is None:
        return False
    return subprocess.run((*_systemd(GIB), "true"), capture_output=True).returncode == 0
