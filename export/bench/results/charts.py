"""Charts of a result as inline SVG. matplotlib draws them: axes, ticks and legends of any range of numbers come out
right without code of ours, and no script is needed to show them.

Colours are CSS variables of the page, so that one drawing serves light and dark. Knows no device.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from export.bench import contract
from export.bench.contract import RATES, Metric
from export.bench.results.result import Document

# Stand-ins that no chart has otherwise; after drawing they become variables.
INK, MUTED, GRID = "#010101", "#010102", "#010103"
SERIES = ("#020001", "#020002", "#020003", "#020004")
HOT = "#030001"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", HOT: "hot"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pocketphi",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": MUTED,
    "axes.titleweight": "normal",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}


def rates(document: Document, baseline: Document | None) -> str | None:
    """Decode and prefill of every repeat; hot ones ringed, the baseline's medians dashed."""
    if not any(metric.of(repeat) for metric in RATES for run in document["runs"] for repeat in run["repeats"]):
        return None

    def draw(figure: Figure) -> None:
        for ax, metric in zip(figure.subplots(1, len(RATES)), RATES, strict=True):
            for run, colour in _coloured(document):
                repeats = list(enumerate(run["repeats"], 1))
                points = [(x, y, repeat["throttled"]) for x, repeat in repeats for y in metric.of(repeat)]
                label = _label(run)
                ax.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=colour, label=label)
                hot = [(x, y) for x, y, throttled in points if throttled]
                ax.plot(*_split(hot), "o", markersize=11, markerfacecolor="none", markeredgecolor=HOT)
                median = _baseline_median(baseline, run, metric)
                if median is not None:
                    ax.axhline(median, color=colour, linestyle=(0, (4, 3)), linewidth=1.2)
            ax.set_title(f"{metric.label}, {metric.unit}")
            ax.set_ylim(bottom=0)
            ax.set_xlabel("repeat" if baseline is None else "repeat (dashed: baseline)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            _legend(ax, document)

    return _svg("rates", draw)


def latency(document: Document) -> str | None:
    """Milliseconds to each new token: the median over the repeats, between their quarters."""
    if not any(repeat["token_ms"] for run in document["runs"] for repeat in run["repeats"]):
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        highest = 0.0
        for run, colour in _coloured(document):
            columns = _columns([repeat["token_ms"] for repeat in run["repeats"]])
            if not columns:
                continue
            quarters = [_quarters(column) for column in columns]
            x = range(2, len(columns) + 2)
            ax.fill_between(
                x, [q[0] for q in quarters], [q[2] for q in quarters], color=colour, alpha=0.18, linewidth=0
            )
            ax.plot(x, [q[1] for q in quarters], color=colour, label=_label(run), linewidth=1.4)
            highest = max(highest, statistics.quantiles([q[2] for q in quarters] * 2, n=50)[-1])
        ax.set_ylim(0, 1.35 * highest or 1)  # one stall must not flatten all the rest
        ax.set_xlabel("new token")
        ax.set_title("ms to each token, median and middle half of the repeats")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(ax, document)

    return _svg("latency", draw)


def memory(document: Document) -> str | None:
    """Memory through all repeats, one after the other, rests left out."""
    timeline, starts, at = list[tuple[float, dict[str, Any]]](), list[float](), 0.0
    for run in document["runs"]:
        for repeat in run["repeats"]:
            starts.append(at)
            samples = repeat["memory"]["samples"]
            timeline += [(at + sample["at_ms"] / 1e3, sample["memory"]) for sample in samples]
            took = (repeat["time_to_first_token_ms"] or 0) + sum(repeat["token_ms"])
            at += max([took, *(sample["at_ms"] for sample in samples)]) / 1e3
    kinds = {metric.place[-1]: metric.label.removeprefix("peak ") for metric in contract.MEMORY}
    names = [key for key in kinds if any(entry.get(key) is not None for _, entry in timeline)][: len(SERIES)]
    if not names:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for key, colour in zip(names, SERIES, strict=False):
            points = [(x, entry[key] / 1e6) for x, entry in timeline if entry.get(key) is not None]
            style = "o-" if len(points) < 40 else "-"
            ax.plot(*_split(points), style, color=colour, label=kinds[key], markersize=3.5)
        for start in starts[1:]:
            ax.axvline(start, color=GRID, linewidth=0.8)
        ax.set_ylim(
            bottom=0, top=1.25 * max(entry.get(key) or 0 for _, entry in timeline for key in names) / 1e6 or 1
        )
        ax.set_xlabel("seconds, rests left out; lines between repeats")
        ax.set_title("MB of the process")
        ax.legend(ncols=len(names), loc="upper left", borderaxespad=0, handlelength=1.4)

    return _svg("memory", draw)


def temperature(document: Document) -> str | None:
    """The battery's temperature before and after every repeat; ringed where the device said it was hot."""
    repeats = [(index, repeat) for index, run in enumerate(document["runs"]) for repeat in run["repeats"]]
    if not any(repeat["thermal"]["after"]["battery_celsius"] is not None for _, repeat in repeats):
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        low, high = [], []
        for index, run in enumerate(document["runs"]):
            points, hot = [], []
            for number, (owner, repeat) in enumerate(repeats, 1):
                for x, moment in ((number - 0.2, "before"), (number + 0.2, "after")):
                    state = repeat["thermal"][moment]
                    if owner != index or state["battery_celsius"] is None:
                        continue
                    points.append((x, state["battery_celsius"]))
                    if repeat["throttled"]:
                        hot.append(points[-1])
            if not points:
                continue
            ax.plot(*_split(points), "o-", color=SERIES[index % len(SERIES)], label=_label(run), markersize=4)
            ax.plot(*_split(hot), "o", markersize=10, markerfacecolor="none", markeredgecolor=HOT)
            low += [y for _, y in points]
            high += [y for _, y in points]
        ax.set_ylim(min(low) - 2, max(high) + 3)
        ax.set_xlabel("repeat, before and after")
        ax.set_title("°C of the battery")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _legend(ax, document)

    return _svg("temperature", draw)


def _svg(name: str, draw: Callable[[Figure], None]) -> str:
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(5.9, 2.9))
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # Several drawings share a page, and each begins its ids anew.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)
    svg = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{name}">', svg, count=1
    )
    return re.sub(r"\n\s*", "\n", svg)


def _coloured(document: Document) -> list[tuple[dict[str, Any], str]]:
    return [(run, SERIES[index % len(SERIES)]) for index, run in enumerate(document["runs"]) if run["repeats"]]


def _label(run: dict[str, Any]) -> str:
    return contract.named(run["configuration"])


def _legend(ax: Axes, document: Document) -> None:
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.16 * (high - low))  # the legend stands above the lines
    ax.legend(ncols=max(1, len(document["runs"])), loc="upper left", borderaxespad=0, handlelength=1.4)


def _split(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _columns(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[row[at] for row in rows if len(row) > at] for at in range(max(map(len, rows), default=0))]


def _quarters(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _baseline_median(baseline: Document | None, run: dict[str, Any], metric: Metric) -> float | None:
    wanted = run["configuration"]
    for other in baseline["runs"] if baseline else ():
        had, statistics = other["configuration"], other["summary"].get(metric.name)
        if statistics and contract.key(had) == contract.key(wanted):
            return float(statistics["median"])
    return None
