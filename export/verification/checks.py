"""Judges logits and weights: a check is one number, its bound and a sentence. Runs nothing itself.

Where the bounds come from. On the same weights, an exported file may differ from transformers only by what a phone
rounds: the input of every linear to int8 with a scale a token; q, k, v and attention's result to the type of the KV
cache. A small difference tips roundings, and tipped roundings grow from layer to layer, so the error is that of a
noise, and no fixed number holds for all models. It is measured instead: transformers itself runs with these roundings
added (the stream "rounded"), and the file may be as far from transformers without them as that is, times
`allowance(n)`, which is 1.15 and what an estimate from n positions needs. Measured with int4 weights and a bfloat16
cache: phi4-tiny, 500 positions, file 1.15 %, rounded reference 1.13 %, wrong rotary factors 21 %; 24 layers of random
weights 3.01 %, 3.03 % and 5.8 %. One position was at most 2.7 times as far, ten together 1.5, 128 together 1.1.
A float32 file rounds nothing: what is left is the order of float32 sums (6e-7 on phi4-tiny).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from export.ptefile.weights import DecodedRows
from export.reference.layerwise import CheckpointWeights

WORST_FACTOR = 3.0  # of the rounded reference's error at its worst position, for one position of the file
SUMMATION_ERROR = 1e-5  # relative; float32 sums in another order
MARGIN_FACTOR = 3.0  # of the largest change of a logit by rounding: how close two tokens may be to change places
# Half a step to the nearest level, and up to 7.5 levels of a step whose bfloat16 scale is off by 2^-8.
ROUNDING_STEPS = 0.5 + 7.5 / 256 + 1e-4
SAME_STEPS = 1e-3  # equal up to the last bits of a product
USELESS = 1.0  # nats of KL divergence: answers are another model's. One that lost 0.57 rambles to the limit
SUMMATION_NATS = 1e-5  # of KL divergence, by the order of float32 sums


@dataclass(frozen=True)
class Check:
    """One number that must not exceed its bound."""

    name: str
    measured: float
    bound: float
    unit: str  # "relative", "steps", "nats", ... as shown beside both numbers
    passed: bool
    detail: str = ""

    def numbers(self) -> tuple[str, str]:
        """The two numbers for people."""
        if self.unit == "relative":
            return f"{100 * self.measured:.3g} %", f"{100 * self.bound:.3g} %"
        return f"{self.measured:.3g} {self.unit}".strip(), f"{self.bound:.3g}"

    def sentence(self) -> str:
        measured, bound = self.numbers()
        return f"{self.name}: {measured}, at most {bound} is right ({self.detail})"


def at_most(name: str, measured: float, bound: float, unit: str, detail: str = "") -> Check:
    """A check that passes up to its bound; NaN fails."""
    return Check(name, measured, bound, unit, measured <= bound, detail)


class WeightComparison:
    """Takes every piece of the file's weights beside the checkpoint's rows, from any thread, and keeps the worst.

    Independent of how the file was made: each weight must be the level nearest to the checkpoint's, and no scale may
    be larger than its group needs; float32 weights must be equal. With `exact`, a checkpoint that is quantized
    already, all must be equal to its weights instead.
    """

    def __init__(self, exact: CheckpointWeights | None = None) -> None:
        self.exact = exact
        self._worst: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, piece: DecodedRows, original: Tensor) -> None:
        """`original` is float32 of the shape of `piece.values`."""
        if self.exact:
            original = self.exact.rows(name, piece.start, piece.start + len(piece.values))
        difference = (piece.values - original).abs_()
        if piece.scale is None:
            self._keep("float32", difference.view(len(original), -1).amax(-1), name, piece)
            return
        grouped = (*piece.scale.shape, -1)
        largest = original.view(grouped).abs().amax(-1)
        self._keep("levels", (difference.view(grouped).amax(-1) / piece.scale).amax(-1), name, piece)
        if self.exact:
            return
        needed = (largest / (2 ** (piece.bits - 1) - 1)).clamp(min=torch.finfo(torch.float32).smallest_normal)
        self._keep("scales", (piece.scale / needed).amax(-1), name, piece)

    def _keep(self, kind: str, rows: Tensor, name: str, piece: DecodedRows) -> None:
        """`rows` [rows] of what is to be small; NaN counts as infinite."""
        rows = rows.nan_to_num(nan=math.inf)
        value, row = rows.max(0)
        place = f"{name.removeprefix('model.').removesuffix('.weight')} row {piece.start + int(row)}"
        with self._lock:
            # Of equals the first by name, in whatever order pieces come.
            worst, where = self._worst.get(kind, (-1.0, ""))
            if value > worst or (value == worst and place < where):
                self._worst[kind] = (float(value), place)

    def checks(self) -> list[Check]:
        found = []
        if "levels" in self._worst:
            value, place = self._worst["levels"]
            detail = f"from the checkpoint, {place}"
            found.append(
                at_most("weights, levels", value, SAME_STEPS if self.exact else ROUNDING_STEPS, "steps", detail)
            )
        if "scales" in self._worst:
            value, place = self._worst["scales"]
            detail = f"what a group needs, {place}"
            found.append(at_most("weights, scales", value, 1.0, "times", detail))
        if "float32" in self._worst:
            value, place = self._worst["float32"]
            found.append(at_most("weights, float32", value, 0.0, "", f"from the checkpoint, {place}"))
        return found


def relative_errors(logits: Tensor, reference: Tensor) -> Tensor:
    """||a - b|| / ||b|| of each position; both [P, V], result [P]."""
    return (logits - reference).norm(dim=-1) / reference.norm(dim=-1)


def pooled_error(logits: Tensor, reference: Tensor) -> float:
    """||a - b|| / ||b|| over all positions together."""
    return float((logits - reference).norm() / reference.norm())


def allowance(positions: int) -> float:
    """Times the rounded reference's error that a right file's error over this many positions stays below."""
    return 1.15 + 2.5 / math.sqrt(positions)


class Rounding:
    """What roundings do to transformers' logits: the measure for a file's errors.

    `rounded` and `reference` are logits [P, V] with and without them, at all `positions`.
    """

    def __init__(self, positions: Sequence[int], rounded: Tensor, reference: Tensor) -> None:
        self.row = {position: row for row, position in enumerate(positions)}
        self.rounded, self.reference = rounded, reference
        self.pooled = pooled_error(rounded, reference)
        self.worst = float(relative_errors(rounded, reference).max())

    def pair(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rounded and reference logits at some of the positions."""
        rows = [self.row[position] for position in positions]
        return self.rounded[rows], self.reference[rows]

    def bound(self, positions: Sequence[int]) -> float:
        """For the error of a file over these positions together."""
        usual = max(self.pooled, pooled_error(*self.pair(positions)))
        return allowance(len(positions)) * usual + SUMMATION_ERROR


def same_weights(name: str, logits: Tensor, positions: Sequence[int], rounding: Rounding) -> list[Check]:
    """The file's logits [P, V] against transformers on the file's weights."""
    _, reference = rounding.pair(positions)
    errors = relative_errors(logits, reference).nan_to_num(nan=math.inf)
    worst = int(errors.argmax())
    worst_bound = WORST_FACTOR * (rounding.worst + SUMMATION_ERROR)
    pooled, detail = pooled_error(logits, reference), f"{len(positions)} positions"
    return [
        at_most(f"logits, {name}", pooled, rounding.bound(positions), "relative", detail),
        at_most(
            f"logits, {name}, worst", float(errors[worst]), worst_bound, "relative", f"position {positions[worst]}"
        ),
    ]


def agreement(name: str, logits: Tensor, other: Tensor, positions: Sequence[int], rounding: Rounding) -> Check:
    """Two ways of feeding the file, [P, V] each: both are rounded, so sqrt(2) as far apart as one from none."""
    bound = math.sqrt(2) * rounding.bound(positions)
    return at_most(name, pooled_error(other, logits), bound, "relative", f"{len(positions)} positions")


def top1(logits: Tensor, positions: Sequence[int], rounding: Rounding) -> Check:
    """Where the most likely token differs, the reference's two candidates must be as close as rounding can swap."""
    rounded, reference = rounding.pair(positions)
    chosen, expected = logits.argmax(-1), reference.argmax(-1)
    margin = reference.amax(-1) - reference.gather(1, chosen.unsqueeze(1)).squeeze(1)
    reach = MARGIN_FACTOR * ((rounded - reference).abs().amax(-1) + SUMMATION_ERROR * reference.abs().amax(-1))
    differ, unexplained = int((chosen != expected).sum()), int((~(margin <= reach)).sum())
    detail = f"{differ} of {len(chosen)} differ, {unexplained} by more than rounding"
    return at_most("logits, top-1", float(unexplained), 0.0, "tokens", detail)


def nearer_rope(
    logits: Tensor, positions: Sequence[int], rounding: Rounding, other: Tensor, kind: str, wrong: str
) -> Check:
    """How far the file is on the way from the reference to one with `wrong` factors, `other` [P, V]: 0 none, 1 all.

    Below a half it is nearer to its own. Roundings go in thousands of directions and this looks along one, so it
    tells factors apart that change logits less than rounding does.
    """
    rounded, reference = rounding.pair(positions)
    way = (other - reference).double()
    squared = float((way * way).sum())

    def share(x: Tensor) -> float:
        return float(((x - reference).double() * way).sum()) / squared if squared else math.inf

    if abs(share(rounded)) > 0.25:
        return Check("rotary factors", 0.0, 0.5, "", True, f"the text is too short to tell {kind} from {wrong}")
    return at_most("rotary factors", share(logits), 0.5, "", f"of the way from {kind} to {wrong} ones")


@dataclass(frozen=True)
class Quality:
    """What quantization costs: the file against the checkpoint's own weights."""

    positions: int
    kl_mean_nats: float
    kl_max_nats: float
    top1_agreement: float  # share of positions
    perplexity_positions: int  # those whose next token is known
    perplexity_checkpoint: float
    perplexity_file: float
    perplexity_change_percent: float


def quality(logits: Tensor, original: Tensor, following: list[int | None]) -> Quality:
    """Both [P, V]; `following` holds the token after each position, None at the end of the text."""
    p, q = original.log_softmax(-1), logits.log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    known = [i for i, token in enumerate(following) if token is not None]
    targets = torch.tensor([[token] for token in following if token is not None], dtype=torch.long)
    losses = [float(-x[known].gather(1, targets).mean()) if known else math.nan for x in (p, q)]
    return Quality(
        positions=len(logits),
        kl_mean_nats=float(divergence.mean()),
        kl_max_nats=float(divergence.max()),
        top1_agreement=float((logits.argmax(-1) == original.argmax(-1)).float().mean()),
        perplexity_positions=len(known),
        perplexity_checkpoint=math.exp(min(losses[0], 700)),
        perplexity_file=math.exp(min(losses[1], 700)),
        perplexity_change_percent=100 * math.expm1(min(losses[1] - losses[0], 700)),
    )


def original_weights(measured: Quality, weights: Quality, roundings: Quality, vocab: int) -> Check:
    """Divergence from the checkpoint may be what quantized weights and roundings make it, and never USELESS.

    A checkpoint that reads text no better than one that takes all of `vocab` for equally likely (random weights) has
    nothing to lose, and for it the first holds alone.

    `weights` is that of transformers on the file's weights from the checkpoint, `roundings` that of the same with
    roundings from without. KL grows with the square of an error, so their square roots add up at most.
    """
    reach = math.sqrt(weights.kl_mean_nats) + allowance(measured.positions) * math.sqrt(roundings.kl_mean_nats)
    bound = reach**2 + SUMMATION_NATS
    if measured.perplexity_checkpoint < vocab:
        bound = min(bound, USELESS)
    return at_most("checkpoint, KL", measured.kl_mean_nats, bound, "nats", f"{measured.positions} positions")


def better_than_nearest(measured: Quality, nearest: Quality) -> Check:
    """Weights whose levels were chosen may not lose more than those rounded to nearest, on the same tokens."""
    return at_most(
        "checkpoint, KL against rounding",
        measured.kl_mean_nats,
        nearest.kl_mean_nats,
        "nats",
        "to nearest loses that",
    )
