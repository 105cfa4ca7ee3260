"""One picture of an evaluation: what quality costs in bytes."""

from __future__ import annotations

from pathlib import Path

from checkpoints.files import aside, publish
from export.evaluation.evaluate import Evaluation


def draw(evaluation: Evaluation, path: Path) -> None:
    """Each model a point: bytes, and KL from the reference or else perplexity, with 95 % bars; format by suffix."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for model in evaluation.models:
        measured = model.quality.kl or model.quality.perplexity
        axes.errorbar(model.bytes / 1e6, measured.value, yerr=1.96 * (measured.error or 0.0), fmt="o", capsize=3)
        axes.annotate(model.name, (model.bytes / 1e6, measured.value), (6, 6), textcoords="offset points", fontsize=9)
    axes.set_xlabel("weights on disk, MB")
    axes.set_ylabel(f"KL from {evaluation.reference}, nats" if evaluation.reference else "perplexity")
    axes.set_title(
        f"{evaluation.tokens} tokens in windows of {evaluation.window_tokens}: lower is better", fontsize=10
    )
    axes.margins(0.25)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    with aside(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=150)
        publish(partial, path)
