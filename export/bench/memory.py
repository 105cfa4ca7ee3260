"""Memory of a process as Linux tells it, in the result's words. Knows texts of /proc, not where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from export.bench.contract import MEMORY_KEYS

# Of status, which the kernel keeps count of; of smaps_rollup, which it walks through all pages for; of meminfo.
LINES: Final = {
    "VmRSS": "rss_bytes",
    "RssAnon": "anonymous_bytes",
    "RssFile": "file_bytes",
    "VmSwap": "swap_bytes",
    "Pss": "pss_bytes",
    "Rss": "rss_bytes",
    "Private_Dirty": "private_dirty_bytes",
    "MemAvailable": "available_bytes",
}
LINE = re.compile(r"^(\w+):\s+(\d+) kB", re.MULTILINE)


def nothing() -> dict[str, int | None]:
    """All that could be known, unknown."""
    return dict.fromkeys(MEMORY_KEYS)


def parse_memory(text: str) -> dict[str, int | None]:
    """Bytes from lines like `Pss: 12 kB`, whatever file they are from; None for what no line tells."""
    memory = nothing()
    for name, kib in LINE.findall(text):
        if name in LINES:
            memory[LINES[name]] = int(kib) * 1024
    if (anonymous := memory["anonymous_bytes"]) is not None:
        memory["private_bytes"] = anonymous + (memory["swap_bytes"] or 0)
    return memory


def kib_of(text: str, name: str) -> int | None:
    """Bytes of one line; None without it."""
    return next((int(kib) * 1024 for found, kib in LINE.findall(text) if found == name), None)


def sample(at_ms: float, phase: str, memory: Mapping[str, int | None]) -> dict[str, Any]:
    """One sample of a repeat; `at_ms` counts from its beginning."""
    return {"at_ms": round(max(0.0, at_ms), 3), "phase": phase, "memory": dict(memory)}


def with_peak(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The samples and the highest of each kind, of available memory the lowest."""
    peak = nothing()
    for key in MEMORY_KEYS:
        known = [value for entry in samples if (value := entry["memory"].get(key)) is not None]
        if known:
            peak[key] = min(known) if key == "available_bytes" else max(known)
    return {"samples": list(samples), "peak": peak}
