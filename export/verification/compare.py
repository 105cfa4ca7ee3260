"""Runs a `.pte` and the references it is to be compared with, and makes a Report of the checks.

Decides which tokens are fed, in which ways, and what that is compared with; running is left to
`export.engine.session` and `export.reference`, judging to `checks` beside this.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput
from checkpoints.phi4mm_config import AUDIO, VISION
from checkpoints.source import Source
from checkpoints.texts import read_text
from checkpoints.weights import wanted_config
from export.engine.session import Feed, Runs
from export.engine.tokenizer import find_tokenizer, load_tokenizer
from export.ptefile.reader import PteFile, open_pte
from export.ptefile.weights import FileWeights, cache_dtype, constant, logits_positions, run_bytes
from export.quantization.rounding import QuantizedSource, Quantizing
from export.quantization.saved_reader import float_original, open_quantized, read_record
from export.reference.kept import KeptWeights
from export.reference.layerwise import CheckpointWeights, Stream, stream_logits
from export.subprocess_call import Child, ChildDied, ChildKilled
from export.verification import checks
from export.verification.checks import Check, Quality, Rounding
from export.verification.extent import Extent
from export.verification.media import check_media, make_probe, run_media
from export.verification.memory import LATER, check_memory

MIN_TOKENS = 16  # of a text
MAX_CHUNK = 512  # tokens: crossing the border of a longer chunk would keep the reference busy for minutes
LONG_STEPS = 12  # tokens fed one by one across original_max_position_embeddings
ROPE_POSITIONS = 16  # the last ones, where rotary factors differ most

TEXT = """\
The lighthouse keeper counted the ships each evening and wrote their names in a ledger that his grandmother had begun.
Most of them carried grain or timber; some carried letters, and once a year a small grey vessel brought the inspector,
who measured the lamp, tasted the water in the cistern and asked whether anything unusual had happened. "Nothing," the
keeper would answer, although that was never quite true. In March the fog had lasted eleven days. In June a whale had
rested in the bay from noon until dusk, breathing so slowly that the children learned to count to a hundred between
one breath and the next. In October the telephone rang for the first time in years, and when he lifted the receiver he
heard only the sea, as though someone at the other end were holding a shell to the mouthpiece.

To find the height of the tower without climbing it, stand where the angle to the top is 45 degrees and walk to the
wall: 31.5 metres, plus 1.6 for the eyes, makes 33.1. The lamp is visible for about 22 kilometres, because the earth
curves away as the square of the distance. Lenses of this kind were invented by Augustin-Jean Fresnel in 1822; he saw
that glass is needed only at the surface, where light bends, and that the rest may be left out.
"""


@dataclass(frozen=True)
class Report:
    """What was compared, and found; plain data."""

    file: str
    cpu: str | None  # the emulated arm64 CPU that ran the file, None for this machine
    checkpoint: str
    calibration: dict[str, Any] | None  # how the checkpoint's levels were chosen, where it is a calibrated one
    recipe: str
    kv_cache: str  # type of its elements
    context_tokens: int
    chunk_tokens: int
    rotary_factors: str  # "short", "long", or "default" for a model without such lists
    text: str
    tokens: int  # compared from position 0 on; prefill and `long` go further
    passed: bool
    failures: list[str]  # a sentence for each check that did not pass
    checks: list[Check]
    quality: Quality
    seconds: float  # for all of it


Runner = Callable[[Path, Sequence[int], Sequence[Feed]], Runs]  # such as export.engine.session.run_feeds


def compare(
    path: Path,
    source: Source,
    extent: Extent,
    progress: Callable[[str], None],
    child: Child,
    runners: Mapping[str | None, Runner],
    original_source: Source | None = None,
) -> list[Report]:
    """See `export.verification.verify`.

    The file is run by each of `runners` in turn, by CPU (None is this machine), in `child`, beside the one reference.
    """
    started = time.monotonic()
    opened = open_pte(path)
    source = _as_in(opened, source)
    config = dataclasses.replace(wanted_config(source), tie_word_embeddings=False)
    chunk, context = constant(opened, "get_max_seq_len"), constant(opened, "get_max_context_len")
    if (vocab := constant(opened, "get_vocab_size")) != config.vocab_size:
        raise BadInput(f"{path}: get_vocab_size is {vocab}, {config.path} says vocab_size {config.vocab_size}")
    if not 1 <= chunk <= context:
        raise BadInput(f"{path}: get_max_seq_len {chunk} is not within 1 to get_max_context_len {context}")
    check_memory(path, run_bytes(opened))
    weights = FileWeights(opened, config)
    kv_dtype = cache_dtype(opened, config, context)
    original_source = original_source or float_original(source)
    kept = open_quantized(source, weights.recipe())
    original = open_quantized(original_source, weights.recipe()) if original_source else kept
    if original is not kept:
        _check_original(kept, original)

    origin, ids = _tokens(source.folder, config, extent.text)
    count = min(extent.tokens, len(ids), context)
    if len(ids) < MIN_TOKENS or count < 2:
        raise BadInput(f"{origin} has {len(ids)} tokens, {count} of them to compare: {MIN_TOKENS} are needed, and 2")
    feeds = plan(count, chunk, context, extent.short)
    if extent.long:
        feeds.append(_beyond(path, config, chunk, context))
    sequence = list(islice(cycle(ids), max(sum(feed.calls) for feed in feeds)))

    kind = _rotary_factors(config, context)
    positions = [feed.positions(logits_positions(opened)) for feed in feeds]
    streams = _streams(count, positions, config, context, kind)
    exact = None if isinstance(kept, Quantizing) else CheckpointWeights(kept)
    weighed = checks.WeightComparison(exact)
    progress("running the file, and the reference beside it")
    running = {cpu: child.start(runner, path, sequence, feeds) for cpu, runner in runners.items()}

    def layer_done(layers: int) -> None:
        for call in running.values():
            if call.done():
                call.result()  # a file that does not run needs no reference
        progress(f"reference: layer {layers} of {config.num_hidden_layers}")

    beside = None
    if config.multimodal is not None and None in runners:
        probe = make_probe(config, sequence[: min(count, 2 * ROPE_POSITIONS)])
        beside = probe, child.start(run_media, path, probe)

    runs = {}
    media: list[Check] = []
    try:
        float_weights = CheckpointWeights(original)
        logits = stream_logits(streams, sequence, float_weights, weights, kv_dtype, weighed, layer_done)
        if original is not kept:
            nearest = Stream("nearest", count, tuple(positions[0]), context, from_file=True, rounded=True)
            logits |= stream_logits([nearest], sequence, float_weights, KeptWeights(original), kv_dtype)
        if beside is not None:
            progress("reference: encoders and adapters")
            probe, media_run = beside
            media = check_media(config, probe, media_run.result, float_weights, weights, kv_dtype, context)
        for cpu, call in running.items():
            progress(f"running the file on {cpu or 'this machine'}")
            runs[cpu] = call.result()
    except ChildKilled:
        raise BadInput(
            f"{path}: the process running it was killed, most likely for memory: it needs about "
            f"{run_bytes(opened) / 1e9:.1f} GB; {LATER}"
        ) from None
    except ChildDied as death:
        raise BadInput(f"{path}: ExecuTorch's runtime crashes on this file ({death})") from None

    reference = _Reference(feeds, positions, streams, kind, ids, logits)
    reports = []
    for cpu, run in runs.items():
        judged, quality = reference.judge(path, run)
        found = weighed.checks() + judged + media
        failures = [check.sentence() for check in found if not check.passed]
        report = Report(
            file=path.name,
            cpu=cpu,
            checkpoint=str(original_source or source),
            calibration=read_record(source.text_folder),
            recipe=str(weights.recipe()),
            kv_cache=str(kv_dtype).removeprefix("torch."),
            context_tokens=context,
            chunk_tokens=chunk,
            rotary_factors=kind,
            text=origin,
            tokens=count,
            passed=not failures,
            failures=failures,
            checks=found,
            quality=quality,
            seconds=round(time.monotonic() - started, 2),
        )
        reports.append(report)
    return reports


def _as_in(opened: PteFile, source: Source) -> Source:
    """The source with the modalities that a file has methods for."""
    names = {plan.name for plan in opened.program.execution_plan}
    has = {VISION: "vision_crop" in names, AUDIO: "audio_subsample" in names}
    return dataclasses.replace(source, modalities=tuple(modality for modality, there in has.items() if there))


@dataclass(frozen=True)
class _Reference:
    """What a run of the file is judged by: how it was fed, and the logits it should have given."""

    feeds: list[Feed]
    positions: list[list[int]]  # of each feed, where the file gives logits
    streams: list[Stream]
    rotary_factors: str
    ids: list[int]  # of the text
    logits: dict[str, torch.Tensor]  # by the name of a stream

    def judge(self, path: Path, runs: Runs) -> tuple[list[Check], Quality]:
        """Checks of a run's logits, and how far they are from the checkpoint's."""
        positions, first = self.positions, self.positions[0]
        everywhere = next(stream.positions for stream in self.streams if stream.name == "same")
        rounding = Rounding(everywhere, self.logits["rounded"], self.logits["same"])
        logits = [torch.from_numpy(values) for _, values in runs]
        if (width := logits[0].shape[1]) != (vocab := self.logits["same"].shape[1]):
            raise BadInput(f"{path}: forward gives {width} logits a token, get_vocab_size is {vocab}")
        if (given := [where for where, _ in runs]) != positions:
            raise BadInput(
                f"{path}: forward gives logits of {sum(map(len, given))} tokens where its program promises "
                f"{sum(map(len, positions))}"
            )
        following = [self.ids[p + 1] if p + 1 < len(self.ids) else None for p in first]
        quality = checks.quality(logits[0], self.logits["original"], following)
        rounded, same = rounding.pair(first)
        explained = checks.quality(same, self.logits["original"], following)
        rounds = checks.quality(rounded, same, following)
        found = _logit_checks([feed.name for feed in self.feeds], positions, logits, rounding)
        if "other" in self.logits:
            kind, where = self.rotary_factors, self.streams[-1].positions
            wrong = {"short": "long", "long": "short"}[kind]
            own = at(where, first, logits[0])
            found.append(checks.nearer_rope(own, where, rounding, self.logits["other"], kind, wrong))
        found.append(checks.original_weights(quality, explained, rounds, width))
        if "nearest" in self.logits:
            nearest = checks.quality(self.logits["nearest"], self.logits["original"], following)
            found.append(checks.better_than_nearest(quality, nearest))
        return found, quality


def _logit_checks(
    names: list[str], positions: list[list[int]], logits: list[torch.Tensor], rounding: Rounding
) -> list[Check]:
    """Each way of feeding against the reference, and against the first way where they share positions."""
    found = []
    for name, where, values in zip(names, positions, logits, strict=True):
        found += checks.same_weights(name, values, where, rounding)
    found.append(checks.top1(logits[0], positions[0], rounding))
    for name, where, values in zip(names[1:], positions[1:], logits[1:], strict=True):
        if common := sorted(set(positions[0]) & set(where)):
            pair = at(common, positions[0], logits[0]), at(common, where, values)
            found.append(checks.agreement(f"{names[0]} = {name}", *pair, common, rounding))
    return found


def at(wanted: Sequence[int], positions: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """The rows of logits [P, V] for some of their positions."""
    row = {position: index for index, position in enumerate(positions)}
    return logits[[row[position] for position in wanted]]


def plan(count: int, chunk: int, context: int, short: bool) -> list[Feed]:
    """Ways of feeding; the first is measured against the checkpoint, the others must agree with it."""
    if short:
        half, third = count // 2, count // 3
        mixed = _calls(half, [chunk]) + _calls(third, [chunk]) + (1,) * (count - half - third)
        return [Feed("prefill and decode", mixed), Feed("prefill at once", _calls(count, [chunk]))]
    across = min(context, max(count, chunk + chunk // 4 if chunk <= MAX_CHUNK else 0))
    return [
        Feed("decode", (1,) * count),
        Feed(f"prefill by {chunk}", _calls(across, [chunk])),
        Feed("prefill in odd pieces", _calls(count, [min(size, chunk) for size in (5, 1, 17, 64)])),
    ]


def _calls(count: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """`count` cut into pieces of these sizes, over and over."""
    found: list[int] = []
    for size in cycle(sizes):
        if (left := count - sum(found)) <= 0:
            break
        found.append(min(size, left))
    return tuple(found)


def _beyond(path: Path, config: ModelConfig, chunk: int, context: int) -> Feed:
    """Prefill to just before original_max_position_embeddings, then single tokens across it."""
    border = config.original_max_position_embeddings
    if context <= border:
        raise BadInput(
            f"{path}: --long needs a context beyond original_max_position_embeddings {border} of {config.path}, "
            f"get_max_context_len is {context}"
        )
    total = min(context, border + LONG_STEPS // 2)
    steps = min(LONG_STEPS, total)
    return Feed(f"beyond {border}", _calls(total - steps, [chunk]) + (1,) * steps, every=False)


def _rotary_factors(config: ModelConfig, context: int) -> str:
    if config.short_factor == config.long_factor:
        return "default"
    return "long" if context > config.original_max_position_embeddings else "short"


def _streams(
    count: int, positions: Sequence[Sequence[int]], config: ModelConfig, context: int, kind: str
) -> list[Stream]:
    """The references that the checks need; rounding is measured at all positions, where the file is run or not."""
    everywhere = tuple(sorted(set(range(count)).union(*positions)))
    length, first = everywhere[-1] + 1, tuple(positions[0])
    streams = [
        Stream("original", count, first, context),
        Stream("same", length, everywhere, context, from_file=True),
        Stream("rounded", length, everywhere, context, from_file=True, rounded=True),
    ]
    if kind != "default":
        border = config.original_max_position_embeddings
        where = _rope_positions(first, border)
        other = border + 1 if kind == "short" else border
        streams.append(Stream("other", where[-1] + 1, where, other, from_file=True))
    return streams


def _rope_positions(positions: Sequence[int], border: int) -> tuple[int, ...]:
    """Beyond `border` tokens transformers cannot be made to take short factors, so positions stay below it."""
    return tuple(position for position in positions if position < border)[-ROPE_POSITIONS:]


def _check_original(kept: QuantizedSource, original: QuantizedSource) -> None:
    """Raise BadInput unless one is a quantized and the other a float checkpoint of models of one shape."""
    if isinstance(kept, Quantizing):
        raise BadInput(f"{kept.config.path} is of a float checkpoint, which is its own --original")
    if not isinstance(original, Quantizing):
        raise BadInput(
            f"--original: {original.config.path} is of a quantized checkpoint, not of the one it was made of"
        )
    theirs, ours = original.config.as_phi3(), kept.config.as_phi3()
    for key in theirs:
        if key != "tie_word_embeddings" and theirs[key] != ours[key]:
            raise BadInput(
                f"--original: {original.config.path} has {key} {theirs[key]}, {kept.config.path} has {ours[key]}"
            )


def _tokens(folder: Path, config: ModelConfig, text: Path | None) -> tuple[str, list[int]]:
    """What the text is called, and its token ids."""
    own = folder / "heldout.txt"
    path = text or (own if own.is_file() else None)
    words = TEXT if path is None else read_text(path)
    tokenizer = load_tokenizer(find_tokenizer(folder))
    ids = tokenizer.encode(words)
    if ids and max(ids) >= config.vocab_size:  # the runtime ends the process on a token it has no embedding for
        raise BadInput(f"{tokenizer.path} has token {max(ids)}, {config.path} says vocab_size {config.vocab_size}")
    return "a page of English" if path is None else path.name, ids
