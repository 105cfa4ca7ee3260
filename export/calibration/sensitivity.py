"""What each linear costs in int4: the KL to the original when it alone is rounded, measured on calibration text.

The model goes through in float32 once, and beside it, from each linear on, a copy of its hidden states in which this
linear was rounded to the nearest int4 levels: as many copies as linears, all read every later layer while it is in
memory, and the last norm and lm_head too. So what a linear's error does to all that follows is in the number. Errors
this small add up: KL grows with the square of an error, and errors of different weights do not know of each other.
int8 leaves the same kind of error, only smaller, so its KL is taken to be less by the ratio of the squared errors
that both leave in what the linear itself gives.

Memory: a layer and the largest linear once more, hidden states of a few tokens for each linear, one set of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.files import Progress
from checkpoints.roles import HEAD
from export.calibration.float_model import ROWS, FloatModel
from export.calibration.work import first_hidden
from export.quantization.recipe import Recipe, Storage, short_name
from export.quantization.rounding import Quantizing, round_rows

SEQUENCES, TOKENS = 4, 64  # of the calibration's own, from the front of each
VOCABULARY = 2048  # rows of lm_head at once


@dataclass(frozen=True)
class Sensitivity:
    """Of one linear; KL in nats a token."""

    name: str  # "3.mlp.down_proj", "lm_head"
    kl_int4: float
    kl_int8: float
    extra_bytes: int  # that int8 takes beyond int4

    @property
    def gain(self) -> float:
        """KL that int8 removes, per byte."""
        return (self.kl_int4 - self.kl_int8) / self.extra_bytes


def extra_bytes(recipe: Recipe, name: str, rows: int, columns: int) -> int:
    """What the weight takes more with 8 bits than in `recipe`, which has it in 4."""
    four, eight = _storages(recipe, name, columns)
    return sum(eight.nbytes(rows).values()) - sum(four.nbytes(rows).values())


def memory_needed(config: ModelConfig, linears: int) -> int:
    """Bytes beyond a float32 layer, about."""
    states = 4 * SEQUENCES * TOKENS * (2 * linears * config.hidden_size + 8 * config.intermediate_size)
    return states + 4 * SEQUENCES * TOKENS * 2 * config.vocab_size


def measure_sensitivities(
    quantizing: Quantizing,
    ids: Tensor,
    names: Sequence[str],
    device: str,
    pool: Executor,
    progress: Callable[[int], AbstractContextManager[Progress]],
) -> list[Sensitivity]:
    """Of the linears with these Hugging Face names, which the recipe has in int4; ids are int64 [N, S].

    `progress` is told weights times the copies of hidden states that go through them.
    """
    run = _Run(quantizing, names, device, pool)
    with progress(run.work()) as run.progress:
        return run.run(ids[:SEQUENCES, :TOKENS])


@dataclass
class _Copy:
    """The hidden states [B, S, D] of a model in which one linear was rounded, and the errors that it leaves."""

    name: str
    hidden: Tensor
    errors: tuple[float, float]  # squared, of int4 and of int8
    extra_bytes: int


class _Run:
    def __init__(self, quantizing: Quantizing, names: Sequence[str], device: str, pool: Executor) -> None:
        self.quantizing, self.recipe, self.names = quantizing, quantizing.recipe, set(names)
        self.model, self.pool = FloatModel(quantizing.untied, device), pool
        self.progress: Progress = lambda size: None
        self.copies: list[_Copy] = []

    def work(self) -> int:
        """What `progress` will be told in all."""
        config, layers = self.model.config, range(self.model.config.num_hidden_layers)
        begun = [
            sum(f"model.layers.{number}.{site.linear}" in self.names for site in self.model.sites)
            for number in layers
        ]
        through = sum(sum(begun[:number]) + len(self.model.sites) for number in layers)
        return self.model.layer_elements * through + config.vocab_size * config.hidden_size * (sum(begun) + 1)

    def run(self, ids: Tensor) -> list[Sensitivity]:
        hidden = first_hidden(self.quantizing, ids).to(self.model.device)
        around = self.model.around(hidden[:1])
        for number in range(self.model.config.num_hidden_layers):
            hidden = self._layer(number, hidden, around)
        return self._judge(hidden)

    def _layer(self, number: int, hidden: Tensor, around: dict[str, Any]) -> Tensor:
        """Take the original and all copies through a layer, and begin the copies of its own linears."""
        model, prefix = self.model, self.model.load(number)

        def through(state: Tensor) -> Tensor:
            found = self._rest(0, state, state, around)
            self.progress(model.layer_elements)
            return found

        moved = self.pool.map(through, [copy.hidden for copy in self.copies])
        for copy, state in zip(self.copies, moved, strict=True):
            copy.hidden = state
        x = hidden
        for k, site in enumerate(model.sites):
            hidden, x = model.cut.enter(k, hidden, x, around)
            if (name := prefix + site.linear) in self.names:
                weight = model.cut.weights[site.linear]
                original = weight.clone()
                errors = self._round(name, weight, x)
                state = self._rest(k + 1, hidden, x, around)
                weight.copy_(original)
                self.copies.append(_Copy(name, state, errors, extra_bytes(self.recipe, name, *weight.shape)))
            self.progress(model.layer_elements)
        return model.cut.leave(hidden, x)

    def _rest(self, site: int, hidden: Tensor, x: Tensor, around: dict[str, Any]) -> Tensor:
        """The layer's result from the site on; `x` is what the linear before it reads, the hidden states for none."""
        for k in range(site, len(self.model.sites)):
            hidden, x = self.model.cut.enter(k, hidden, x, around)
        return self.model.cut.leave(hidden, x)

    def _round(self, name: str, weight: Tensor, x: Tensor) -> tuple[float, float]:
        """Round a weight to int4 in place; the squared errors of its results for x, and of those of int8."""
        four, eight = _storages(self.recipe, name, weight.shape[1])
        flat = x.flatten(0, 1)

        def some(start: int) -> tuple[float, float]:
            rows = weight[start : start + ROWS]
            rounded, better = _rounded(rows, four), _rounded(rows, eight)
            found = tuple(float((flat @ (w - rows).T).double().square().sum()) for w in (rounded, better))
            rows.copy_(rounded)
            return found[0], found[1]

        pieces = list(self.pool.map(some, range(0, len(weight), ROWS)))
        return sum(one for one, _ in pieces), sum(other for _, other in pieces)

    def _judge(self, hidden: Tensor) -> list[Sensitivity]:
        """Through the last norm and lm_head, which is read a few rows at a time."""
        self.model.load_norm()
        config, recipe = self.model.config, self.recipe
        final = [self.model.norm(state).flatten(0, 1) for state in (hidden, *(copy.hidden for copy in self.copies))]
        logits = torch.cat([final[0] @ rows.T for _, rows in self._head()], dim=1)
        found = [_Kl(logits) for _ in final[1:]]
        heads = (_Kl(logits), _Kl(logits)) if HEAD in self.names else ()
        for start, rows in self._head():

            def add(kl: _Kl, x: Tensor, rows: Tensor = rows, start: int = start) -> None:
                kl.add(start, x @ rows.T)
                self.progress(rows.numel())

            list(self.pool.map(add, found, final[1:]))
            for kl, storage in zip(heads, _storages(recipe, HEAD, config.hidden_size), strict=False):
                kl.add(start, final[0] @ _rounded(rows, storage).T)
            self.progress(rows.numel())
        sensitivities = []
        for copy, kl in zip(self.copies, found, strict=True):
            value, (int4, int8) = kl.mean(), copy.errors
            less = value * int8 / int4 if int4 else 0.0
            sensitivities.append(Sensitivity(short_name(copy.name), value, less, copy.extra_bytes))
        if heads:
            more = extra_bytes(recipe, HEAD, config.vocab_size, config.hidden_size)
            sensitivities.append(Sensitivity(short_name(HEAD), heads[0].mean(), heads[1].mean(), more))
        return sensitivities

    def _head(self) -> Iterator[tuple[int, Tensor]]:
        """lm_head in pieces, with the row that each begins at."""
        for start in range(0, self.model.config.vocab_size, VOCABULARY):
            yield start, self.model.read(HEAD, start, min(start + VOCABULARY, self.model.config.vocab_size))


class _Kl:
    """KL of some logits from the original's [T, V], given a few columns at a time."""

    def __init__(self, original: Tensor) -> None:
        self.original, self.norm = original, original.logsumexp(-1, keepdim=True).double()
        self.crossed = torch.zeros(len(original), dtype=torch.float64, device=original.device)
        self.own = torch.full_like(self.crossed, -torch.inf)

    def add(self, start: int, logits: Tensor) -> None:
        """Columns from `start` on."""
        expected = self.original[:, start : start + logits.shape[1]]
        weights = (expected - self.norm).exp()
        self.crossed += (weights * (expected - logits)).sum(-1)
        self.own = torch.logaddexp(self.own, logits.double().logsumexp(-1))

    def mean(self) -> float:
        """In nats a token; rounding of sums can leave it a little below zero."""
        return max(0.0, float((self.crossed - self.norm.squeeze(-1) + self.own).mean()))


def _rounded(rows: Tensor, storage: Storage) -> Tensor:
    return round_rows(rows, storage).dequantize()


def _storages(recipe: Recipe, name: str, columns: int) -> tuple[Storage, Storage]:
    """Of a weight as it is, and with 8 bits."""
    eight = replace(recipe, head_bits=8, int8=(short_name(name),))
    return recipe.storage(name, columns), eight.storage(name, columns)
