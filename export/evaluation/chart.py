"""One picture of an evaluation: what quality costs in bytes, and in time where that was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.errors import BadInput
from checkpoints.files import aside, publish
from export.evaluation.evaluate import Evaluated, Evaluation
from export.evaluation.scores import WIDTH, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox, BboxBase

FORMATS = (".png", ".svg", ".pdf")
# Where a label may stand, from its point: direction in which it lies, then how far away, in points.
SIDES = [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0)]
AWAY = (6, 14, 24, 36, 50, 66, 84, 104, 126)
Point = tuple[float, float]


def check_chart(path: Path) -> None:
    """Raise BadInput unless a picture can be put there, which is better known before the work."""
    if path.suffix not in FORMATS:
        raise BadInput(f"--chart {path} does not end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if not path.resolve().parent.is_dir():
        raise BadInput(f"--chart {path}: the folder {path.resolve().parent} does not exist")


def draw(evaluation: Evaluation, path: Path) -> None:
    """Each model a point: KL from the reference or else perplexity, with 95 % bars; format by suffix."""
    from matplotlib.figure import Figure  # slow to import

    timed = any(model.speed for model in evaluation.models)
    figure = Figure(figsize=(12 if timed else 7, 4.5), layout="constrained", dpi=150)
    panels = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
    _panel(panels[0], evaluation.models, lambda model: model.bytes / 1e6)
    panels[0].set_xlabel("weights on disk, MB")
    panels[0].set_ylabel(f"KL from {evaluation.reference}, nats" if evaluation.reference else "perplexity")
    if timed:
        speeds = {model.name: model.speed for model in evaluation.models if model.speed}
        _panel(panels[1], [model for model in evaluation.models if model.speed], lambda m: speeds[m.name].ms)
        position = next(iter(speeds.values())).position
        panels[1].set_xlabel(f"decoding after {position} tokens on this machine, ms a token")
    figure.suptitle(
        f"{evaluation.tokens} tokens in windows of {evaluation.window_tokens}: lower and further left is better",
        fontsize=10,
    )
    figure.draw_without_rendering()  # places the panels, without which no label can be
    figure.set_layout_engine("none")  # and what labels need does not move them again
    for axes in panels:
        axes.autoscale(False)  # lines to labels do not move them either
    for axes in panels:
        _spread(axes)
    with aside(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip("."))
        publish(partial, path)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other is as good as in both and better in one, from left to right; low is good."""
    best: list[Point] = []
    for x, y in sorted(set(points)):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def _panel(axes: Axes, models: Sequence[Evaluated], cost: Callable[[Evaluated], float]) -> None:
    points = []
    for number, model in enumerate(models):
        measured = _measured(model)
        color, point = f"C{number % 10}", (cost(model), measured.value)
        points.append(point)
        axes.errorbar(*point, yerr=WIDTH * (measured.error or 0.0), fmt="o", capsize=3, color=color, zorder=3)
        label = axes.annotate(
            model.name, point, (0, 0), textcoords="offset points", va="bottom", fontsize=9, color=color
        )
        label.set_in_layout(False)  # it finds its place within the panel later
    best = front(points)
    axes.step(*zip(*best, strict=True), where="post", color="0.6", linestyle="--", zorder=1, label="Pareto front")
    axes.legend(loc="lower left", fontsize=8)
    axes.margins(0.25)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _measured(model: Evaluated) -> Estimate:
    return model.quality.kl or model.quality.perplexity


def _spread(axes: Axes) -> None:
    """Move labels so that none lies on another, on a point or outside; one that is far from its point gets a line."""
    from matplotlib.collections import LineCollection
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = figure.dpi / 72  # pixels a point
    labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
    points = [axes.transData.transform(label.xy) for label in labels]
    bars = [segment for bar in axes.collections if isinstance(bar, LineCollection) for segment in bar.get_segments()]
    taken = [Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in points]
    taken += [Bbox(axes.transData.transform(bar)).padded(2 * scale) for bar in bars]
    if legend := axes.get_legend():
        taken.append(legend.get_window_extent())
    for label, (x, y) in zip(labels, points, strict=True):
        box, away = _place(label.get_window_extent(), (x, y), scale, taken, axes.bbox)
        taken.append(box)
        label.set_position(((box.x0 - x) / scale, (box.y0 - y) / scale))
        if away > AWAY[1]:
            ends = axes.transData.inverted().transform([(x, y), ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)])
            axes.plot(*ends.T, color="0.8", linewidth=0.8, zorder=0)


def _place(size: BboxBase, point: Point, scale: float, taken: list[Bbox], frame: BboxBase) -> tuple[Bbox, int]:
    """Where a label of this size covers least of what is taken, and how many points it is away: near places first."""
    from matplotlib.transforms import Bbox

    found: list[tuple[float, Bbox, int]] = []
    for away in AWAY:
        for right, up in SIDES:
            left = point[0] + right * away * scale - size.width * (1 - right) / 2
            low = point[1] + up * away * scale - size.height * (1 - up) / 2
            box = Bbox.from_bounds(left, low, size.width, size.height)
            hidden = size.width * size.height - _common(box, frame)
            covered = hidden + sum(_common(box.padded(1), other) for other in taken)
            if covered < 1e-6:
                return box, away
            found.append((covered, box, away))
    return min(found, key=lambda place: place[0])[1:]


def _common(one: BboxBase, other: BboxBase) -> float:
    """Square pixels that two boxes have in common."""
    from matplotlib.transforms import Bbox

    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height
