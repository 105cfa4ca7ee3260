"""Models beside each other on the same windows of text; see `export.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import count

from checkpoints.errors import BadInput
from export.engine.tokenizer import Tokenizer
from export.evaluation.kept_logits import KeptLogits, room_for_logits, rounds
from export.evaluation.models import FileModel, Model
from export.evaluation.scores import Estimate, Interval, Scored, difference, estimate, perplexity, score
from export.evaluation.speed import Speed, measure_speed
from export.progress import Counting

MARGIN = 0.1  # nats by which a model must be better on the text than on its tokens in any other order


@dataclass(frozen=True)
class Quality:
    """Of a model on some windows; per token, in nats. KL and top-1 are against the reference, None without one."""

    perplexity: Estimate
    nll: Estimate
    kl: Estimate | None
    top1: Estimate | None


@dataclass(frozen=True)
class Evaluated:
    """One model: on all windows and on each text, and its difference from the first model."""

    name: str
    bytes: int
    quality: Quality
    by_text: dict[str, Quality]
    shuffled_nll: float  # with the tokens of each window in any other order
    shuffled_least: float  # which no model can be below, as its order tells nothing
    control_passed: bool
    more_nll: Interval | None  # than the first model
    more_kl: Interval | None
    speed: Speed | None = None  # of decoding, where it was measured


@dataclass(frozen=True)
class Evaluation:
    """Plain data; what `--json` prints."""

    reference: str | None
    window_tokens: int
    windows: int
    tokens: int  # predicted, by each model
    texts: list[str]
    models: list[Evaluated]


def cut(texts: Mapping[str, str], tokenizer: Tokenizer, size: int, limit: int | None) -> list[tuple[str, list[int]]]:
    """Texts as windows of `size` tokens, at most `limit` of each; a rest is left out unless it is all there is."""
    windows = []
    for name, text in texts.items():
        ids = tokenizer.encode(text)
        whole = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)] or [ids]
        if len(whole[0]) < 2:
            raise BadInput(f"{name} has {len(ids)} tokens: 2 are needed, one to predict the other by")
        windows += [(name, window) for window in whole[:limit]]
    return windows


def evaluate_texts(
    models: Sequence[Model],
    reference: Model | None,
    texts: Mapping[str, str],
    size: int,
    limit: int | None,
    progress: Counting = lambda what, done, of: None,
    room: int | None = None,
) -> Evaluation:
    """Run all models on all windows, one model after the other.

    Memory: the largest model and the logits of two windows. The reference's logits are kept until all models were
    compared with them, on the disk where they are large, at most `room` bytes (None: 4 GiB, or half of what the disk
    has left): with more windows than that the models take turns.

    Raises BadInput where the models do not share tokens, or windows do not fit them.
    """
    everyone = [*models, *([reference] if reference else [])]
    windows = cut(texts, models[0].tokenizer, size, limit)
    _check(everyone, texts, max(len(ids) for _, ids in windows), windows)
    counts = [len(ids) for _, ids in windows]
    turns = [range(len(windows))]
    if reference is not None:
        turns = rounds(counts, 4 * reference.vocab_size, room_for_logits() if room is None else room)
    scored: list[list[Scored]] = [[] for _ in models]
    runs, done = len(windows) * len({id(model) for model in everyone}), count()
    for turn in turns:
        with KeptLogits() as kept:
            if reference is not None:
                with reference.loaded() as logits:
                    for number in turn:
                        progress(reference.name, next(done), runs)
                        kept.append(logits(windows[number][1]))
            for model, found in zip(models, scored, strict=True):
                with nullcontext() if model is reference else model.loaded() as loaded:
                    for place, (text, ids) in enumerate(windows[turn.start : turn.stop]):
                        expected = kept[place] if reference else None
                        if loaded is not None:
                            progress(model.name, next(done), runs)
                        own = loaded(ids) if loaded is not None else expected
                        assert own is not None  # the reference's were kept
                        found.append(score(text, ids, own, expected))
    progress("", runs, runs)
    return Evaluation(
        reference=reference.name if reference else None,
        window_tokens=size,
        windows=len(windows),
        tokens=sum(window.tokens for window in scored[0]),
        texts=list(texts),
        models=[_evaluated(model, found, scored[0]) for model, found in zip(models, scored, strict=True)],
    )


def with_speed(evaluation: Evaluation, models: Sequence[Model], progress: Counting) -> Evaluation:
    """With the time that each `.pte` takes for a token; BadInput as `check_speed`."""
    files = [model for model in models if isinstance(model, FileModel)]
    speeds = iter(measure_speed(files, progress))
    timed = [
        replace(found, speed=next(speeds)) if isinstance(model, FileModel) else found
        for model, found in zip(models, evaluation.models, strict=True)
    ]
    return replace(evaluation, models=timed)


def _check(
    models: Sequence[Model], texts: Mapping[str, str], longest: int, windows: list[tuple[str, list[int]]]
) -> None:
    """Raise BadInput unless all models can read all windows, and mean the same by their tokens."""
    first = models[0]
    highest = max(max(ids) for _, ids in windows)
    for model in models:
        if model.vocab_size != first.vocab_size:
            raise BadInput(
                f"{model.name} has {model.vocab_size} logits, {first.name} {first.vocab_size}: only models of the "
                f"same tokens can be compared"
            )
        if highest >= model.vocab_size:
            raise BadInput(f"{model.tokenizer.path} has token {highest}, {model.name} has {model.vocab_size} logits")
        if longest > model.context:
            raise BadInput(f"windows of {longest} tokens do not fit {model.name}, whose context is {model.context}")
        for name, text in texts.items():
            if model is not first and model.tokenizer.encode(text) != first.tokenizer.encode(text):
                raise BadInput(f"{model.tokenizer.path} makes other tokens of {name} than {first.tokenizer.path}")


def _evaluated(model: Model, found: list[Scored], first: list[Scored]) -> Evaluated:
    tokens = sum(window.tokens for window in found)
    shuffled, least = (sum(map(of, found)) / tokens for of in (_chance, lambda window: window.entropy))
    quality, compared = _quality(found), found is not first
    return Evaluated(
        name=model.name,
        bytes=model.size,
        quality=quality,
        by_text={
            text: _quality([window for window in found if window.text == text])
            for text in dict.fromkeys(window.text for window in found)
        },
        shuffled_nll=shuffled,
        shuffled_least=least,
        control_passed=shuffled >= least - 1e-4 and quality.nll.value < shuffled - MARGIN,
        more_nll=difference(found, first, _nll) if compared else None,
        more_kl=difference(found, first, _kl) if compared and quality.kl else None,
    )


def _quality(windows: list[Scored]) -> Quality:
    nll, compared = estimate(windows, _nll), windows[0].kl is not None
    return Quality(
        perplexity=perplexity(nll),
        nll=nll,
        kl=estimate(windows, _kl) if compared else None,
        top1=estimate(windows, lambda window: window.same or 0.0) if compared else None,
    )


def _nll(window: Scored) -> float:
    return window.nll


def _chance(window: Scored) -> float:
    return window.chance


def _kl(window: Scored) -> float:
    return window.kl or 0.0


def plain(evaluation: Evaluation) -> dict[str, object]:
    """As JSON has it."""
    return asdict(evaluation)
