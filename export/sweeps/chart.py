"""The picture of a sweep: what quality costs in bytes and in time, with the recipes that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checkpoints.files import aside, publish
from export.sweeps.rows import Choice, Row
from export.sweeps.sweep import Sweep

Point = tuple[float, float]
APART, ABOVE = 13, 9  # points between two labels, and from a point up to its own
MEASURES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "bytes": ("file, MB", lambda row: None if row.bytes is None else row.bytes / 1e6),
    "decode_ms": ("decode, ms a token", lambda row: row.number("bench", "decode_ms")),
}


def front(points: Sequence[Point]) -> list[int]:
    """Those that no other is at or below in both; of equal ones the first. In order of the first number."""
    found: list[int] = []
    for number in sorted(range(len(points)), key=lambda n: (points[n], n)):
        if not found or points[number][1] < points[found[-1]][1]:
            found.append(number)
    return found


def fronts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Names of the recipes on each front of the chart."""
    found = {}
    for name, (_, measure) in MEASURES.items():
        shown, points = _points(rows, measure)
        found[name] = [shown[number].name for number in front(points)]
    return found


def draw(sweep: Sweep, choice: Choice | None, path: Path) -> bool:
    """Write the chart, its format by the suffix; False where no recipe has been measured."""
    from matplotlib.figure import Figure  # slow to import

    rows = [row for row in sweep.rows if row.number("evaluate", "kl") is not None]
    if not rows:
        return False
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    tokens = rows[0].found["evaluate"]["tokens"]
    figure.suptitle(
        f"{sweep.checkpoint}: lower and further left is better; {tokens} tokens, bars are 95 %", fontsize=11
    )
    for axes, (label, measure) in zip(figure.subplots(1, 2, sharey=True), MEASURES.values(), strict=True):
        shown, points = _points(rows, measure)
        if not shown:
            continue
        best = front(points)
        axes.step(*zip(*(points[n] for n in best), strict=True), where="post", color="tab:blue", alpha=0.5, zorder=1)
        for number, (row, (x, y)) in enumerate(zip(shown, points, strict=True)):
            color = "tab:blue" if number in best else "0.55"
            axes.errorbar(x, y, yerr=1.96 * (row.error("kl") or 0.0), fmt="o", capsize=3, color=color, zorder=2)
            if choice is not None and choice.row is row:
                axes.plot(x, y, "o", markersize=14, fillstyle="none", color="tab:green", zorder=3)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.margins(x=0.25, y=0.1)
        axes.set_ylim(bottom=0)
        _label(figure, axes, shown, points, best)
    figure.axes[0].set_ylabel(f"KL from {sweep.checkpoint}, nats")
    with aside(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=150)
        publish(partial, path)
    return True


def _points(rows: Sequence[Row], measure: Callable[[Row], float | None]) -> tuple[list[Row], list[Point]]:
    """Rows that have both numbers, and their places."""
    both = [(row, measure(row), row.number("evaluate", "kl")) for row in rows]
    known = [(row, (x, y)) for row, x, y in both if x is not None and y is not None]
    return [row for row, _ in known], [point for _, point in known]


def _label(figure: Any, axes: Any, rows: Sequence[Row], points: Sequence[Point], best: Sequence[int]) -> None:
    """Names right of their points, pushed upwards where they would cover each other, with a line to the point."""
    figure.canvas.draw()  # the layout, and with it where points lie
    scale = 72 / figure.dpi
    places = [tuple(scale * float(one) for one in axes.transData.transform(point)) for point in points]
    taken: list[Point] = []
    for number in sorted(range(len(rows)), key=lambda n: places[n][1]):
        x, y = places[number]
        wide = 6.0 * len(rows[number].name) + 10
        level = y + ABOVE
        while any(abs(level - other) < APART and x - wide < left < x + wide for left, other in taken):
            level += 1
        taken.append((x, level))
        axes.annotate(
            rows[number].name,
            points[number],
            (10, level - y),
            textcoords="offset points",
            fontsize=9,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            fontweight="bold" if number in best else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6},
        )
