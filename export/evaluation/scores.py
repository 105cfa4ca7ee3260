"""Numbers of windows of text, and what they say of all text: means with standard errors, differences with intervals.

A window is a sample: its tokens depend on each other. Standard errors are those of a ratio of sums over windows;
intervals of a difference are 1.96 of them on either side and are of the same windows in both models, which is what
makes small differences visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.errors import BadInput

WIDTH = 1.96  # standard errors on either side of a mean: 95 % of normal distributions


@dataclass(frozen=True)
class Scored:
    """Sums over the predicted tokens of a window, in nats."""

    text: str
    tokens: int
    nll: float  # of the tokens that follow
    chance: float  # of the window's tokens in any other order: the mean over all permutations, times `tokens`
    entropy: float  # of the window's tokens as a distribution, times `tokens`: what no guess in any order can beat
    kl: float | None = None  # of the model from the reference
    same: float | None = None  # how often both find the same token likeliest


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens and its standard error; None with one window."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Interval:
    """A difference of means, and the bounds of its 95 % interval; None with one window."""

    value: float
    low: float | None
    high: float | None


def score(text: str, ids: Sequence[int], logits: Tensor, reference: Tensor | None) -> Scored:
    """Judge logits [tokens, V] of a window by its tokens, and by the logits of a reference."""
    if not logits.isfinite().all():
        raise BadInput(f"a window of {text} has logits that are not finite numbers")
    labels = torch.tensor(ids[1:])
    found = logits[:-1].log_softmax(-1)
    share = labels.unique(return_counts=True)[1] / len(labels)
    kl = same = None
    if reference is not None:
        expected = reference[:-1].log_softmax(-1)
        kl = float((expected.exp() * (expected - found)).sum(-1).double().sum())
        same = float((expected.argmax(-1) == found.argmax(-1)).sum())
    return Scored(
        text,
        len(labels),
        nll=-float(found.gather(1, labels[:, None]).double().sum()),
        chance=-float(found[:, labels].double().mean()) * len(labels),
        entropy=-float((share * share.log()).double().sum()) * len(labels),
        kl=kl,
        same=same,
    )


def estimate(windows: Sequence[Scored], of: Callable[[Scored], float]) -> Estimate:
    """Mean a token of a sum that windows have."""
    value, error = _ratio([of(window) for window in windows], [window.tokens for window in windows])
    return Estimate(value, error)


def difference(ones: Sequence[Scored], others: Sequence[Scored], of: Callable[[Scored], float]) -> Interval:
    """Mean a token of the first minus that of the second, on the same windows."""
    sums = [of(one) - of(other) for one, other in zip(ones, others, strict=True)]
    value, error = _ratio(sums, [window.tokens for window in ones])
    return Interval(value, *(None if error is None else value + sign * WIDTH * error for sign in (-1, 1)))


def perplexity(nll: Estimate) -> Estimate:
    """exp of a mean, its error by the first derivative."""
    value = math.exp(min(nll.value, 700.0))  # beyond, a double has no number
    return Estimate(value, None if nll.error is None else value * nll.error)


def _ratio(sums: Sequence[float], tokens: Sequence[int]) -> tuple[float, float | None]:
    """Sum over sum, and its standard error over windows."""
    count, total = len(sums), sum(tokens)
    value = sum(sums) / total
    if count < 2:
        return value, None
    spread = sum((one - value * size) ** 2 for one, size in zip(sums, tokens, strict=True))
    return value, math.sqrt(spread * count / (count - 1)) / total
