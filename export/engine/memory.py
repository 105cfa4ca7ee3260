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


def trim() -> None:
    """Return freed memory to the system, where C's library can: else what comes next would seem to take none."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if malloc_trim is not None:
        malloc_trim(0)


def _kib(text: str, key: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])
