"""Chooses the levels of every linear, a layer at a time, on what the layers before it make of calibration text.

Each linear sees what the part that is quantized already gives, rounded to int8 as in a file. A layer is read, folded
if the method says so, and quantized linear by linear; then its results and the hidden states after it are saved.
Memory: a layer in float32, moments of its widest linear five times, activations up to a limit (`moments.SPILL`).
"""

from __future__ import annotations

from concurrent.futures import Executor

import torch
from torch import Tensor

from checkpoints.config import ModelConfig
from checkpoints.files import Progress
from checkpoints.roles import HEAD, NORM, Role, role
from export.calibration.float_model import ROWS, FloatModel
from export.calibration.folding import (
    TOKENS,
    Read,
    Seen,
    choose_factors,
    fold_columns,
    move,
    see,
    together,
    unfold_rows,
)
from export.calibration.moments import SPILL, activations, each, mean_squares, moments
from export.calibration.options import SEQUENCE, Calibration
from export.calibration.work import Work, first_hidden
from export.quantization.gptq import factorize, gptq
from export.quantization.rounding import Quantizing, Rounded
from export.quantization.scales import nearest, search_scales
from export.reference.layerwise import round_activations

BASE = 700_000_000  # bytes that torch and transformers take


def quantize_layers(
    quantizing: Quantizing, calibration: Calibration, ids: Tensor, work: Work, pool: Executor, progress: Progress
) -> None:
    """Fill `work` with every linear and norm of the model, from where it stopped; `progress` gets bytes of levels.

    `ids` are int64 [N, S]. Raises BadInput for a weight that is no number.
    """
    run = _Run(quantizing, calibration, work, pool, progress)
    done = work.layers_done()
    run.start(work.hidden(done) if done else first_hidden(quantizing, ids))
    for number in range(run.config.num_hidden_layers):
        if number < done:
            progress(run.model.layer_elements)
        else:
            work.save_layer(number, run.layer(number), run.hidden)
    if not work.has("head"):
        work.save("head", run.head())


def memory_needed(config: ModelConfig, tokens: int, threads: int) -> int:
    """Bytes that calibrating takes at most, about: see the docstring of this module."""
    widest = max(config.hidden_size, config.q_dim, config.intermediate_size)
    linears = config.hidden_size * (config.qkv_dim + config.q_dim + 3 * config.intermediate_size)
    layer = (4 + 1 + 4) * linears  # in float32, its levels, and the largest linear once more as it is dequantized
    pieces = threads * (8 * 4 * ROWS * widest + 4 * SEQUENCE * 6 * widest)
    hidden, read = 4 * tokens * config.hidden_size, 4 * tokens * widest
    held = sum(size for size in (hidden, read, read) if size <= SPILL)
    head = config.vocab_size * config.hidden_size * 2  # levels, and their pieces before they are joined
    return BASE + max(layer + 5 * 4 * widest**2, head) + pieces + held


class _Run:
    def __init__(
        self, quantizing: Quantizing, calibration: Calibration, work: Work, pool: Executor, progress: Progress
    ) -> None:
        self.model, self.recipe = FloatModel(quantizing.untied, calibration.device), quantizing.recipe
        self.cut, self.sites, self.norm = self.model.cut, self.model.sites, self.model.norm
        self.config, self.method, self.device = quantizing.config, calibration.method, calibration.device
        self.work, self.pool, self.progress = work, pool, progress

    def start(self, hidden: Tensor) -> None:
        self.hidden = activations(tuple(hidden.shape), self.work.folder, self.device)
        self.hidden.copy_(hidden)
        self.around = self.model.around(self.hidden[:1])

    def layer(self, number: int) -> dict[str, Rounded | Tensor]:
        """Quantize a layer and take the hidden states through it; what is to be kept of it, by name."""
        prefix, cut = self.model.load(number), self.cut
        if self.method.fold:
            self._fold(prefix)
        found: dict[str, Rounded | Tensor] = {}
        x = self.hidden
        for k, site in enumerate(self.sites):
            weight, name = cut.weights[site.linear], prefix + site.linear
            x = self._advance(k, x, weight.shape[1])
            found[name] = rounded = self._quantize(name, lambda a, b, w=weight: w[a:b], weight.shape, x)  # type: ignore[misc]
            weight.copy_(rounded.dequantize())

        def leave(n: int) -> None:
            self.hidden[n] = cut.leave(self.hidden[n : n + 1], x[n : n + 1])[0]

        each(self.pool, len(x), leave)
        return found | {prefix + key: w.clone() for key, w in cut.weights.items() if role(prefix + key) is Role.NORM}

    def head(self) -> dict[str, Rounded | Tensor]:
        """Quantize lm_head, and the norm before it as it is to be kept."""
        self.model.load_norm()
        shape = (self.config.vocab_size, self.config.hidden_size)
        storage = self.recipe.storage(HEAD, shape[1])

        def read(start: int, stop: int) -> Tensor:
            return self.model.read(HEAD, start, stop)

        if self.method.fold:
            share = max(1, TOKENS // len(self.hidden))
            seen = together(list(self.pool.map(lambda h: see(self.norm(h), share), self.hidden)))
            every = torch.arange(shape[1], device=self.device)
            factors = choose_factors(read, shape[0], storage, seen, every, self.pool)
            self.norm.weight.copy_(unfold_rows(self.norm.weight, factors))

            def read(start: int, stop: int) -> Tensor:
                return fold_columns(self.model.read(HEAD, start, stop), factors)

        x = activations(tuple(self.hidden.shape), self.work.folder, self.device)

        def enter(n: int) -> None:
            x[n] = round_activations(self.norm(self.hidden[n]))

        each(self.pool, len(x), enter)
        return {HEAD: self._quantize(HEAD, read, shape, x), NORM: self.norm.weight.clone()}

    def _advance(self, k: int, x: Tensor, columns: int) -> Tensor:
        """What the linear of site k reads, of all sequences, as int8 keeps it; `x` is that of the site before."""
        found = activations((*self.hidden.shape[:2], columns), self.work.folder, self.device)

        def enter(n: int) -> None:
            self.hidden[n : n + 1], inputs = self.cut.enter(k, self.hidden[n : n + 1], x[n : n + 1], self.around)
            found[n] = round_activations(inputs[0])

        each(self.pool, len(found), enter)
        return found

    def _fold(self, prefix: str) -> None:
        """Move factors between the weights of the layer, chosen on what its own, unrounded weights read."""
        share = max(1, TOKENS // len(self.hidden))

        def visit(n: int) -> list[Seen]:
            hidden = x = self.hidden[n : n + 1]
            found = []
            for k in range(len(self.sites)):
                hidden, x = self.cut.enter(k, hidden, x, self.around)
                found.append(see(x[0], share))
            return found

        visited = list(self.pool.map(visit, range(len(self.hidden))))
        chosen = []
        for k, site in enumerate(self.sites):
            weight, fed = self.cut.weights[site.linear], site.fed.to(self.device)
            storage = self.recipe.storage(prefix + site.linear, weight.shape[1])
            seen = together([found[k] for found in visited])
            factors = choose_factors(
                lambda a, b, w=weight: w[a:b],  # type: ignore[misc]
                len(weight),
                storage,
                seen,
                fed,
                self.pool,
            )
            chosen.append((site, factors))
        for site, factors in chosen:  # all are chosen on the weights as they were
            move(self.cut.weights, site, factors)

    def _quantize(self, name: str, read: Read, shape: tuple[int, ...], x: Tensor) -> Rounded:
        """Levels and scales for a weight of this shape that reads x [N, S, columns]."""
        storage = self.recipe.storage(name, shape[1])
        if self.method.gptq:
            second = moments(x, self.pool)
            importance = second.diagonal().clone()
            factor = factorize(second, self.pool)
        else:
            importance = mean_squares(x, self.pool)

        def some(start: int) -> Rounded:
            stop = min(start + ROWS, shape[0])
            rows = read(start, stop)
            scales = search_scales(rows, storage, importance)
            rounded = gptq(rows, scales, storage, factor) if self.method.gptq else nearest(rows, scales, storage)
            self.progress(rows.numel())
            return rounded

        pieces = list(self.pool.map(some, range(0, shape[0], ROWS)))
        return Rounded(torch.cat([p.levels for p in pieces]), torch.cat([p.scales for p in pieces]), storage)
