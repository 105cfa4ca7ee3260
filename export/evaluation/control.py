"""A control for tasks with choices that can fail: the same answers, judged by the labels of other questions.

Where a model's choices have nothing to do with the questions its accuracy is that with labels in any other order.
Knows samples as lm-evaluation-harness logs them; asks nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.evaluation.scores import WIDTH


@dataclass(frozen=True)
class Permuted:
    """Accuracy of the likeliest choices, and with the labels in any other order: the mean over all permutations."""

    accuracy: float
    permuted: float
    passed: bool  # better than permuted by more than 1.96 standard errors


def permuted_labels(samples: Sequence[Mapping[str, Any]]) -> Permuted | None:
    """None of a task without choices, or whose labels are all alike: their order says nothing."""
    chosen = [_choice(sample) for sample in samples]
    labels = [sample["target"] for sample in samples]
    if None in chosen or not all(isinstance(label, int) for label in labels) or len(set(labels)) < 2:
        return None
    share = {label: count / len(labels) for label, count in Counter(labels).items()}
    hits = [float(choice == label) for choice, label in zip(chosen, labels, strict=True)]
    expected = [share.get(choice, 0.0) for choice in chosen]
    more = [hit - chance for hit, chance in zip(hits, expected, strict=True)]
    mean = sum(more) / len(more)
    error = math.sqrt(sum((one - mean) ** 2 for one in more) / (len(more) - 1) / len(more))
    return Permuted(sum(hits) / len(hits), sum(expected) / len(expected), mean > WIDTH * error)


def _choice(sample: Mapping[str, Any]) -> int | None:
    """The likeliest of the choices; None where a sample has none."""
    answers = sample["filtered_resps"]
    if len(answers) < 2 or not all(isinstance(answer, list | tuple) and len(answer) == 2 for answer in answers):
        return None
    return max(range(len(answers)), key=lambda number: answers[number][0])
