"""Two results beside each other, by the medians of their summaries. Knows no device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from checkpoints.errors import BadInput
from export.bench.plan import Plan
from export.bench.results.result import Document

# What is compared, and whether more of it is better. Resident memory is left out: it counts what the system may drop.
COMPARED = {
    "decode_tokens_per_s": True,
    "prefill_tokens_per_s": True,
    "time_to_first_token_ms": False,
    "load_ms": False,
    "peak_pss_bytes": False,
    "peak_private_dirty_bytes": False,
    "peak_footprint_bytes": False,
}


@dataclass(frozen=True)
class Change:
    """One median of one configuration, before and now."""

    prompt_tokens: int
    new_tokens: int
    name: str  # of the summary
    before: float
    now: float
    worse: float  # by what part of `before`, negative where it is better

    def beyond(self, tolerance: float) -> bool:
        """Whether this is a regression."""
        return self.worse > tolerance

    @property
    def words(self) -> str:
        """How far it is, for people."""
        if abs(self.worse) < 0.0005:
            return "the same"
        return f"{abs(self.worse):.1%} {'worse' if self.worse > 0 else 'better'}"

    def __str__(self) -> str:
        return (
            f"{self.prompt_tokens}+{self.new_tokens} tokens: {self.name} {self.now:,.4g} instead of "
            f"{self.before:,.4g}, {self.words}"
        )


def check_baseline(baseline: Document, plan: Plan, name: object) -> None:
    """Raise BadInput unless the baseline has a configuration of the plan."""
    wanted = {(length, plan.new_tokens) for length in plan.prompt_tokens}
    if not wanted & _medians(baseline).keys():
        have = ", ".join(f"{prompt}+{new}" for prompt, new in _medians(baseline)) or "none with a finished repeat"
        raise BadInput(
            f"--baseline {name} has no configuration of this run "
            f"({', '.join(f'{prompt}+{new}' for prompt, new in sorted(wanted))} tokens): it has {have}"
        )


def compare(baseline: Document, document: Document) -> list[Change]:
    """The changes of every median that both have, in configurations that both have."""
    before, changes = _medians(baseline), []
    for (prompt, new), summary in _medians(document).items():
        old = before.get((prompt, new), {})
        for name, more_is_better in COMPARED.items():
            if old.get(name) and summary.get(name):
                was, is_ = old[name]["median"], summary[name]["median"]
                if was > 0:
                    worse = (was - is_ if more_is_better else is_ - was) / was
                    changes.append(Change(prompt, new, name, was, is_, worse))
    return changes


def differences(baseline: Document, document: Document) -> list[str]:
    """What else is not the same, in sentences: another phone or engine makes other numbers."""
    notes = []
    for part, key in (("device", "model"), ("build", "engine"), ("model", "sha256")):
        was, is_ = baseline[part][key], document[part][key]
        if was and is_ and was != is_:
            notes.append(f"the baseline's {part} {key} is {was[:40]}, this one's {is_[:40]}")
    return notes


def _medians(document: Document) -> dict[tuple[int, int], dict[str, Any]]:
    return {
        (run["configuration"]["prompt_tokens"], run["configuration"]["new_tokens"]): run["summary"]
        for run in document["runs"]
        if run["repeats"]
    }
