"""Chooses the next token from logits: mask, bias, penalties, temperature, top-k, top-p, min-p, seeded choice.

In numpy, and in transformers' order. Knows nothing of text, files or where logits come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from checkpoints.errors import BadInput
from export.engine.choosing import Choosing


class Sampler:
    """The choices of one answer: its random numbers, and the tokens that penalties are about."""

    def __init__(self, choosing: Choosing, prompt: Sequence[int], vocab_size: int) -> None:
        self._choosing = choosing
        self._random = np.random.default_rng(choosing.seed)
        self._counts = np.zeros(vocab_size, np.int32)  # of each token in the answer
        self._seen = np.zeros(vocab_size, bool)  # in prompt or answer
        self._seen[[token for token in prompt if 0 <= token < vocab_size]] = True
        if strangers := [token for token in choosing.logit_bias if not 0 <= token < vocab_size]:
            raise BadInput(f"logit_bias is for token {strangers[0]}, the tokenizer has {vocab_size}")
        self._biased = np.array(list(choosing.logit_bias), np.int64)
        self._bias = np.array(list(choosing.logit_bias.values()), np.float32)

    def choose(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> int:
        """A token; logits are float32 [vocab_size] and not changed, `allowed` is bool [vocab_size]."""
        scores = self._scores(logits, allowed)
        if self._choosing.temperature == 0:
            return int(scores.argmax())
        tokens, probabilities = kept(scores, self._choosing)
        # The first of exponential clocks, each as fast as its token is likely. Every token has a random number of its
        # own, so that rounding in the logits, as where a prompt is fed in other pieces, seldom changes the choice.
        clocks = self._random.standard_exponential(len(scores))[tokens]
        with np.errstate(divide="ignore"):  # a probability too small for a float
            return int(tokens[(clocks / probabilities).argmin()])

    def took(self, token: int) -> None:
        """Count a token into the answer."""
        self._counts[token] += 1
        self._seen[token] = True

    def _scores(self, logits: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
        asked = self._choosing
        scores = logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))
        if len(self._biased):
            scores = scores.copy()
            scores[self._biased] += self._bias
        if asked.repetition_penalty != 1:
            penalty = np.float32(asked.repetition_penalty)
            scores = np.where(self._seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)
        if asked.frequency_penalty or asked.presence_penalty:
            scores = scores - np.float32(asked.frequency_penalty) * self._counts
            scores -= np.float32(asked.presence_penalty) * (self._counts > 0)
        return scores


def kept(scores: np.ndarray, asked: Choosing) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be chosen, and their probabilities, which need not sum to 1."""
    scores = (scores.astype(np.float64) - scores.max()) / asked.temperature
    least = np.partition(scores, -asked.top_k)[-asked.top_k] if 0 < asked.top_k < len(scores) else -np.inf
    tokens = np.flatnonzero((scores >= least) & (scores > -np.inf))
    probabilities = np.exp(scores[tokens])
    probabilities /= probabilities.sum()
    if asked.top_p < 1:
        likely = _nucleus(probabilities, asked.top_p)
        tokens, probabilities = tokens[likely], probabilities[likely]
    if asked.min_p > 0:
        likely = probabilities >= asked.min_p * probabilities.max()
        tokens, probabilities = tokens[likely], probabilities[likely]
    return tokens, probabilities


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Places of the likeliest that have this much probability together, at least one."""
    some = min(1024, len(probabilities))  # mostly enough, and sorted in a hundredth of the time of a vocabulary
    order = np.argpartition(-probabilities, some - 1)[:some]
    if probabilities[order].sum() < top_p:
        order = np.arange(len(probabilities))
    order = order[np.argsort(-probabilities[order], kind="stable")]
    before = probabilities[order].cumsum() - probabilities[order]  # of all likelier ones
    return order[: max(1, int((before < top_p).sum()))]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Float64 [V] in nats."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def likeliest(logprobs: np.ndarray, count: int) -> list[int]:
    """The `count` likeliest tokens, in order."""
    if not count:
        return []
    some = np.argpartition(-logprobs, min(count, len(logprobs) - 1))[:count]
    return [int(token) for token in some[np.argsort(-logprobs[some], kind="stable")]]
