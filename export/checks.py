"""Judges logits and weights: each check is one number, a bound and a sentence. Runs nothing itself.

Bounds, and where they come from. An exported file may differ from transformers on the same weights only by what a
phone rounds: the input of every linear to int8 with a scale a token, and q, k, v and attention's result to the type of
the KV cache. Small differences tip roundings, and tipped roundings grow from layer to layer, so no fixed number holds
for all models. It is measured instead: transformers itself runs with the same roundings (stream "rounded"), and the
file may be no farther from transformers without them than ROUNDING_FACTOR times as far. On phi4-tiny both are at 1.0 %
(0.0104 and 0.0104 over 160 positions), the file and the rounded reference 0.8 % apart; wrong rotary factors
make 18 %. Files in float32 have no roundings: there SUMMATION_ERROR is left (6e-7 measured on 4 layers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from export.readback import Piece

ROUNDING_FACTOR = 2.0  # of the rounded reference's error, over all positions together
WORST_FACTOR = 3.0  # of its error at its worst position, for the worst position
SUMMATION_ERROR = 1e-5  # relative; float32 sums in another order, for files that round nothing
MARGIN_FACTOR = (
    3.0  # of the largest change of a logit by rounding at a position: how close two logits may change places
)
# Half a step to the nearest level, and up to 7.5 levels of a step whose bfloat16 scale is off by 2^-8.
ROUNDING_STEPS = 0.5 + 7.5 / 256 + 1e-4
SAME_STEPS = 1e-3  # equal up to the last bits of a product
KL_FACTOR, KL_SLACK_NATS = 1.5, 0.005  # of the rounded reference's divergence from the checkpoint's logits


@dataclass(frozen=True)
class Check:
    """One number that must not exceed its bound."""

    name: str
    measured: float
    bound: float
    unit: str  # "relative", "steps", "nats", ... as shown beside both numbers
    passed: bool
    detail: str = ""

    def sentence(self) -> str:
        return f"{self.name}: {self.measured:.3g} {self.unit}, at most {self.bound:.3g} is right ({self.detail})"


def at_most(name: str, measured: float, bound: float, unit: str, detail: str = "") -> Check:
    """A check that passes up to its bound; NaN fails."""
    return Check(name, measured, bound, unit, measured <= bound, detail)


class WeightComparison:
    """Takes every piece of the file's weights beside the checkpoint's rows and keeps the worst.

    Independent of how the file was made: each weight must be the level nearest to the checkpoint's, and no scale may
    be larger than its group needs; float32 weights must be equal. With `exact`, for a checkpoint that is quantized
    already, all must be equal.
    """

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self._worst: dict[str, tuple[float, str]] = {}

    def __call__(self, name: str, piece: Piece, original: Tensor) -> None:
        """`original` is float32 of the shape of `piece.values`."""
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

    def _keep(self, kind: str, rows: Tensor, name: str, piece: Piece) -> None:
        """`rows` [rows] of what is to be small; NaN counts as infinite."""
        rows = rows.nan_to_num(nan=math.inf)
        value, row = rows.max(0)
        if value > self._worst.get(kind, (-1.0, ""))[0]:
            self._worst[kind] = (float(value), f"{name} row {piece.start + int(row)}")

    def checks(self) -> list[Check]:
        found = []
        if "levels" in self._worst:
            value, place = self._worst["levels"]
            detail = f"distance to the checkpoint's weights, worst in {place}"
            found.append(
                at_most("weights, levels", value, SAME_STEPS if self.exact else ROUNDING_STEPS, "steps", detail)
            )
        if "scales" in self._worst:
            value, place = self._worst["scales"]
            detail = f"of what the largest weight of a group needs, worst in {place}"
            found.append(at_most("weights, scales", value, 1.0, "times", detail))
        if "float32" in self._worst:
            value, place = self._worst["float32"]
            found.append(at_most("weights, float32", value, 0.0, "", f"difference, worst in {place}"))
        return found


def relative_errors(logits: Tensor, reference: Tensor) -> Tensor:
    """||a - b|| / ||b|| of each position; both [P, V], result [P]."""
    return (logits - reference).norm(dim=-1) / reference.norm(dim=-1)


def pooled_error(logits: Tensor, reference: Tensor) -> float:
    """||a - b|| / ||b|| over all positions together."""
    return float((logits - reference).norm() / reference.norm())


def same_weights(name: str, logits: Tensor, reference: Tensor, rounded: Tensor, positions: list[int]) -> list[Check]:
    """The file's logits against transformers on the file's weights; all [P, V] at `positions`."""
    errors, allowed = relative_errors(logits, reference), relative_errors(rounded, reference)
    bound = ROUNDING_FACTOR * pooled_error(rounded, reference) + SUMMATION_ERROR
    worst_bound = WORST_FACTOR * (float(allowed.max()) + SUMMATION_ERROR)
    worst = int(errors.nan_to_num(nan=math.inf).argmax())
    where = f"at position {positions[worst]}"
    return [
        at_most(
            f"same weights, {name}", pooled_error(logits, reference), bound, "relative", f"{len(errors)} positions"
        ),
        at_most(f"same weights, {name}, worst", float(errors[worst]), worst_bound, "relative", where),
    ]


def agreement(name: str, logits: Tensor, other: Tensor, reference: Tensor, rounded: Tensor) -> Check:
    """Two ways of feeding the file, at the same positions: their difference may be as large as rounding makes."""
    bound = ROUNDING_FACTOR * pooled_error(rounded, reference) + SUMMATION_ERROR
    detail = f"{len(logits)} common positions"
    return at_most(name, pooled_error(other, logits), bound, "relative", detail)


def top1(logits: Tensor, reference: Tensor, rounded: Tensor) -> Check:
    """Where the most likely token differs, the reference's two candidates must be as close as rounding can swap."""
    chosen, expected = logits.argmax(-1), reference.argmax(-1)
    margin = (reference.amax(-1) - reference.gather(1, chosen.unsqueeze(1)).squeeze(1)).double()
    reach = MARGIN_FACTOR * ((rounded - reference).abs().amax(-1) + SUMMATION_ERROR * reference.abs().amax(-1))
    differ, unexplained = int((chosen != expected).sum()), int((~(margin <= reach)).sum())
    detail = f"{len(chosen) - differ} of {len(chosen)} the same, {differ} differ, {unexplained} by more than rounding"
    return at_most("same weights, top-1", float(unexplained), 0.0, "tokens", detail)


def nearer_rope(logits: Tensor, reference: Tensor, rounded: Tensor, other: Tensor, kind: str, wrong: str) -> Check:
    """How far the file is on the way from the reference to one with the other rotary factors: 0 is none, 1 all of it.

    Below a half it is nearer to its own. Roundings are spread over thousands of directions, this looks at one.
    """
    way = (other - reference).double()
    length = float((way * way).sum())

    def share(x: Tensor) -> float:
        return float(((x - reference).double() * way).sum()) / length if length else 0.0

    detail = f"of the way from {kind} to {wrong} factors"
    if not length or abs(share(rounded)) > 0.25:
        return Check("rotary factors", 0.0, 0.5, "", True, f"this text is too short to tell {kind} from {wrong}")
    return at_most("rotary factors", share(logits), 0.5, "", detail)


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


def original_weights(measured: Quality, rounded: Quality) -> Check:
    """Divergence from the checkpoint may be what quantized weights and rounding explain, not more."""
    bound = KL_FACTOR * rounded.kl_mean_nats + KL_SLACK_NATS
    return at_most("original weights, KL", measured.kl_mean_nats, bound, "nats", f"{measured.positions} positions")
