"""Two results beside each other, by the medians of their summaries. Knows no device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints.errors import BadInput
from export.bench.contract import METRICS, Metric, key, lengths
from export.bench.results.result import Document

TOKENS = " tokens"


@dataclass(frozen=True)
class Change:
    """One median of one configuration, before and now."""

    prompt_tokens: int
    new_tokens: int
    mode: str
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

    @property
    def lengths(self) -> str:
        """The configuration, for people."""
        return lengths(vars(self), " + ")

    def __str__(self) -> str:
        tolerated = "" if self.tolerance is None else f", tolerated {self.tolerance:.1%}"
        return (
            f"{lengths(vars(self), unit=TOKENS)}: {self.metric.name} {self.now:,.4g} instead of "
            f"{self.before:,.4g}, {self.words}{tolerated}"
        )

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "metric": self.metric.name, "regression": self.regression}


def check_baseline(baseline: Document, planned: Sequence[Mapping[str, Any]], name: object) -> None:
    """Raise BadInput unless the baseline has one of these configurations."""
    have = _configurations(baseline)
    if not have.keys() & set(map(key, planned)):
        raise BadInput(
            f"--baseline {name} has no configuration of this run ({_listed(planned)}): "
            f"it has {_listed(have.values()) or 'none with a finished repeat'}"
        )


def _listed(configurations: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(lengths(one, unit=TOKENS) for one in configurations)


def compare(baseline: Document, document: Document, tolerance: float | None = None) -> list[Change]:
    """The changes of every median that both have, in configurations that both have.

    `tolerance` stands in for the metrics' own, but for those that have none.
    """
    before, changes = _summaries(baseline), []
    for configuration, summary in _summaries(document).items():
        for metric in METRICS:
            was = _median(before.get(configuration, {}), metric)
            now = _median(summary, metric)
            if was is None or now is None or was <= 0:
                continue
            worse = (was - now if metric.higher_is_better else now - was) / was
            allowed = metric.tolerance if metric.tolerance is None or tolerance is None else tolerance
            changes.append(Change(*configuration, metric, was, now, worse, allowed))
    return changes


def differences(baseline: Document, document: Document) -> list[str]:
    """What else is not the same, in sentences: another phone, engine or kind of load makes other numbers."""
    notes = []
    for (what, was), is_ in zip(_facts(baseline).items(), _facts(document).values(), strict=True):
        if was and is_ and was != is_:
            notes.append(f"the baseline's {what} is {was[:40]}, this one's {is_[:40]}")
    return notes + [*_only(document, baseline, "the baseline has"), *_only(baseline, document, "this one has")]


def _only(one: Document, other: Document, other_has: str) -> list[str]:
    """What of one result the other lacks: whole configurations, and metrics of those that both have."""
    configurations, theirs = _configurations(one), _summaries(other)
    lacks = _listed(configuration for at, configuration in configurations.items() if at not in theirs)
    notes = [f"{other_has} no repeat of {lacks}"] if lacks else []
    for at, summary in _summaries(one).items():
        names = [m.label for m in METRICS if at in theirs and _median(summary, m) and not _median(theirs[at], m)]
        if names:
            notes.append(f"{lengths(configurations[at], unit=TOKENS)}: {other_has} no {', '.join(names)}")
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


def _summaries(document: Document) -> dict[tuple[int, int, str], dict[str, Any]]:
    return {key(run["configuration"]): run["summary"] for run in document["runs"] if run["repeats"]}


def _configurations(document: Document) -> dict[tuple[int, int, str], dict[str, Any]]:
    return {key(run["configuration"]): run["configuration"] for run in document["runs"] if run["repeats"]}


def _median(summary: Mapping[str, Mapping[str, float] | None], metric: Metric) -> float | None:
    statistics = summary.get(metric.name)  # an older result knows fewer metrics
    return statistics["median"] if statistics else None
