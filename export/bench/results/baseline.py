"""Two results beside each other, by the medians of their summaries. Knows no device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.errors import BadInput
from export.bench.contract import METRICS, Metric
from export.bench.results.result import Document


@dataclass(frozen=True)
class Change:
    """One median of one configuration, before and now."""

    prompt_tokens: int
    new_tokens: int
    metric: Metric
    before: float
    now: float
    worse: float  # by what part of `before`, negative where it is better
    tolerance: float | None  # None: not judged

    @property
    def regression(self) -> bool:
        return self.tolerance is not None and self.worse > self.tolerance

    @property
    def improvement(self) -> bool:
        return self.tolerance is not None and self.worse < -self.tolerance

    @property
    def words(self) -> str:
        """How far it is, for people."""
        if abs(self.worse) < 0.0005:
            return "the same"
        return f"{abs(self.worse):.1%} {'worse' if self.worse > 0 else 'better'}"

    def __str__(self) -> str:
        tolerated = "" if self.tolerance is None else f", tolerated {self.tolerance:.1%}"
        return (
            f"{self.prompt_tokens}+{self.new_tokens} tokens: {self.metric.name} {self.now:,.4g} instead of "
            f"{self.before:,.4g}, {self.words}{tolerated}"
        )

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "metric": self.metric.name, "regression": self.regression}


def check_baseline(baseline: Document, lengths: set[tuple[int, int]], name: object) -> None:
    """Raise BadInput unless the baseline has a configuration of these prompt and new tokens."""
    if not lengths & _summaries(baseline).keys():
        have = ", ".join(f"{prompt}+{new}" for prompt, new in _summaries(baseline)) or "none with a finished repeat"
        raise BadInput(
            f"--baseline {name} has no configuration of this run "
            f"({', '.join(f'{prompt}+{new}' for prompt, new in sorted(lengths))} tokens): it has {have}"
        )


def compare(baseline: Document, document: Document, tolerance: float | None = None) -> list[Change]:
    """The changes of every median that both have, in configurations that both have.

    `tolerance` stands in for the metrics' own, but for those that have none.
    """
    before, changes = _summaries(baseline), []
    for (prompt, new), summary in _summaries(document).items():
        for metric in METRICS:
            was = _median(before.get((prompt, new), {}), metric)
            now = _median(summary, metric)
            if was is None or now is None or was <= 0:
                continue
            worse = (was - now if metric.higher_is_better else now - was) / was
            allowed = metric.tolerance if metric.tolerance is None or tolerance is None else tolerance
            changes.append(Change(prompt, new, metric, was, now, worse, allowed))
    return changes


def differences(baseline: Document, document: Document) -> list[str]:
    """What else is not the same, in sentences: another phone, engine or kind of load makes other numbers."""
    notes = []
    for (what, was), is_ in zip(_facts(baseline).items(), _facts(document).values(), strict=True):
        if was and is_ and was != is_:
            notes.append(f"the baseline's {what} is {was[:40]}, this one's {is_[:40]}")
    return notes


def _facts(document: Document) -> dict[str, str | None]:
    runs = document["runs"]
    return {
        **{f"{part} {key}": document[part][key] for part, key in (("device", "model"), ("build", "engine"))},
        "model sha256": document["model"]["sha256"],
        "packing": " and ".join(
            sorted({one["packing"] for run in runs for one in run["repeats"] if "packing" in one})
        ),
        "draft_tokens": "/".join(sorted({str(run["configuration"].get("draft_tokens", 0)) for run in runs})),
    }


def _summaries(document: Document) -> dict[tuple[int, int], dict[str, Any]]:
    return {
        (run["configuration"]["prompt_tokens"], run["configuration"]["new_tokens"]): run["summary"]
        for run in document["runs"]
        if run["repeats"]
    }


def _median(summary: Mapping[str, Mapping[str, float] | None], metric: Metric) -> float | None:
    statistics = summary.get(metric.name)  # an older result knows fewer metrics
    return statistics["median"] if statistics else None
