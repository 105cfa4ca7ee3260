"""Tables and numbers of a card, in the hub's Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns whose cells are all numbers stand to the right."""
    right = [all(row[at][:1].isdigit() or row[at] in ("", "–") for row in rows) for at in range(len(names))]
    lines = [names, ["---:" if at else "---" for at in right], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def megabytes(size: int) -> str:
    """Without the unit; two digits for what is small."""
    return f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.2g}" if size >= 1e4 else "0.01"


def estimate(found: Mapping[str, Any] | None, digits: int, times: float = 1, unit: str = "") -> str:
    """A value with its standard error where there is one."""
    if found is None:
        return "–"
    error = "" if found["error"] is None else f" ± {times * found['error']:,.{digits}f}"
    return f"{times * found['value']:,.{digits}f}{error}{unit}"
