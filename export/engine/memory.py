"""What this process takes of the machine's memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    peak_resident: int
    private_dirty: int  # cannot be dropped and read again


def own_memory() -> Memory:
    """Of now, but for the peak; without Linux's /proc the nearest there is."""
    try:
        status, rollup = Path("/proc/self/status").read_text(), Path("/proc/self/smaps_rollup").read_text()
        return Memory(_kib(status, "VmHWM:"), _kib(rollup, "Private_Dirty:"))
    except (OSError, StopIteration):
        info = psutil.Process().memory_full_info()
        return Memory(getattr(info, "peak_wset", info.rss), info.uss)


def memory_left() -> int:
    """Bytes this process and its children may take: what the system has left, or less where a cgroup says so."""
    left = psutil.virtual_memory().available + psutil.swap_memory().free
    return min([left, *_cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _cgroup_limits(groups: Path, root: Path) -> list[int]:
    """Of the process's group and those around it, in bytes; none without Linux's cgroups (version 2)."""
    try:
        own = next(line for line in groups.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    folder = root / own.removeprefix("0::").strip("/")
    files = [place / "memory.max" for place in (folder, *folder.parents) if place.is_relative_to(root)]
    texts = [file.read_text().strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdecimal()]


def trim() -> None:
    """Return freed memory to the system, where C's library can: else what comes next would seem to take none."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if malloc_trim is not None:
        malloc_trim(0)


def _kib(text: str, key: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
