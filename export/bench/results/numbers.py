"""Numbers as a person reads them: bytes, three digits that say something, a metric with its spread."""

from __future__ import annotations

from collections.abc import Mapping

from export.bench.contract import Metric


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.{0 if count >= 1e7 else 1}f} MB"


def number(value: float | None) -> str:
    """Three digits that say something."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def titled(metric: Metric) -> str:
    """A metric's name with the unit that `shown` leaves out."""
    return metric.label if metric.unit == "bytes" else f"{metric.label}, {metric.unit}"


def shown(metric: Metric, value: float | None) -> str:
    """A metric's value; with the unit where that is not said beside it, as for bytes."""
    return size(value) if metric.unit == "bytes" and value is not None else number(value)


def spread(metric: Metric, statistics: Mapping[str, float] | None) -> str:
    """The median, and the quarters around it where they differ."""
    low, middle, high = (shown(metric, (statistics or {}).get(key)) for key in ("p25", "median", "p75"))
    return middle if low == high else f"{middle} ({low}–{high})"
