"""Checks a `.pte`, run by the wheel's C++ runtime, against transformers: `python -m export.verify FILE`.

Five questions, each answered by numbers with bounds (`export.checks` says where they come from). Are the file's weights
the checkpoint's, rounded? On these weights, are its logits those of transformers? Are its rotary factors those for its
context? Do the logits agree however tokens are fed: at once, in chunks, one by one? And does it diverge from the
checkpoint's own weights by no more than quantization explains?

A file has one table of rotary factors, for its whole context: made for more than original_max_position_embeddings
tokens it uses the long factors at every length, as the phones' runners do, and is compared with transformers made to
do the same. Memory: the running file, in a process of its own; after that one layer in float32 and the logits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput, run
from checkpoints.source import DEFAULT, EMBEDDED, resolve
from export import checks
from export.checks import Check, Quality
from export.progress import quiet
from export.ptefile import open_pte
from export.quantize import Quantizing
from export.quantized import open_quantized
from export.readback import FileWeights, cache_dtype, constant
from export.reference import CheckpointWeights, Stream, stream_logits
from export.runtime import Feed, in_child, run_feeds
from export.tokenizer import find_tokenizer, load_tokenizer

SHORT_TOKENS, TOKENS, MIN_TOKENS = 48, 128, 16
MAX_CHUNK = 512  # tokens: crossing the border of a longer chunk would keep the reference busy for minutes
LONG_STEPS = 12  # tokens fed one by one across original_max_position_embeddings
ROPE_POSITIONS = 16  # the last ones, where rotary factors differ most

TEXT = """\
The lighthouse keeper counted the ships each evening and wrote their names in a ledger that his grandmother had begun.
Most of them carried grain or timber; some carried letters, and once a year a small grey vessel brought the inspector,
who measured the lamp, tasted the water in the cistern and asked whether anything unusual had happened. "Nothing," the
keeper would answer, although that was never quite true. In March the fog had lasted eleven days. In June a whale had
rested in the bay from noon until dusk, breathing so slowly that the children learned to count to a hundred between one
breath and the next. In October the telephone rang for the first time in years, and when he lifted the receiver he heard
only the sea, as though someone at the other end were holding a shell to the mouthpiece.

To find the height of the tower without climbing it, stand where the angle to the top is 45 degrees and walk the distance
to the wall: 31.5 metres, plus 1.6 for the eyes, makes 33.1. The lamp is visible for about 22 kilometres, because the
earth curves away as the square of the distance. Lenses of this kind were invented by Augustin-Jean Fresnel in 1822; he
saw that glass is needed only at the surface, where light bends, and that the rest may be left out.
"""


@dataclass(frozen=True)
class Report:
    """What was compared, and found; plain data."""

    file: str
    checkpoint: str
    recipe: str
    kv_cache: str  # type of its elements
    context_tokens: int
    chunk_tokens: int
    rotary_factors: str  # "short", "long", or "default" for a model without such lists
    text: str
    tokens: int  # compared from position 0 on; prefill and --long go further
    passed: bool
    failures: list[str]  # a sentence for each check that did not pass
    checks: list[Check]
    quality: Quality
    seconds: dict[str, float]


@dataclass(frozen=True)
class Logits:
    """float32 [positions, V] and the positions they belong to."""

    positions: list[int]
    values: Tensor

    def at(self, positions: Sequence[int]) -> Tensor:
        row = {position: index for index, position in enumerate(self.positions)}
        return self.values[[row[position] for position in positions]]


def verify(
    file: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    text: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    short: bool = False,
    long: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Compare `file` with a checkpoint (hub id, folder or "phi4-tiny") on a text.

    `text` is a file in UTF-8 (default: the checkpoint's heldout.txt, else a page of English); `tokens` of it are
    compared. `short` is what an export ends with; `long` goes past original_max_position_embeddings. BadInput for a file
    that is no `.pte` of this model, and where the runtime refuses it or crashes; a wrong file gets a Report.
    """
    path, source = Path(file), resolve(checkpoint, revision)
    config = dataclasses.replace(read_config(source.folder), tie_word_embeddings=False)
    opened = open_pte(path)
    chunk, context = constant(opened, "get_max_seq_len"), constant(opened, "get_max_context_len")
    if (vocab := constant(opened, "get_vocab_size")) != config.vocab_size:
        raise BadInput(f"{path}: get_vocab_size is {vocab}, {config.path} says vocab_size {config.vocab_size}")
    if not 1 <= chunk <= context:
        raise BadInput(f"{path}: get_max_seq_len {chunk} is not within 1 to get_max_context_len {context}")
    weights = FileWeights(opened, config)
    kv_dtype = cache_dtype(opened, config, context)
    original = open_quantized(source.folder, weights.recipe())
    compare = checks.WeightComparison(exact=not isinstance(original, Quantizing))

    origin, ids = _tokens(source.folder, config, text)
    count = min(tokens or (SHORT_TOKENS if short else TOKENS), len(ids), context)
    if len(ids) < MIN_TOKENS or count < 2:
        raise BadInput(f"{origin} gives {count} tokens to compare, at least {MIN_TOKENS} are needed")
    feeds = plan(count, chunk, context, short)
    if long:
        feeds.append(_beyond(path, config, chunk, context))
    sequence = list(islice(cycle(ids), max(sum(feed.calls) for feed in feeds)))

    started = time.monotonic()
    progress("running the file")
    runs = [Logits(p, torch.from_numpy(v)) for p, v in in_child(path, run_feeds, path, sequence, feeds)]
    ran = time.monotonic()
    first, kind = runs[0], _rotary_factors(config, context)
    streams = _streams(runs, config, context, kind)
    reference = stream_logits(
        streams, sequence, CheckpointWeights(original), weights, kv_dtype, compare,
        lambda layers: progress(f"reference: layer {layers} of {config.num_hidden_layers}"),
    )  # fmt: skip
    known = {stream.name: Logits(list(stream.positions), reference[stream.name]) for stream in streams}

    found = compare.checks()
    for feed, logits in zip(feeds, runs, strict=True):
        same, rounded = (known[name].at(logits.positions) for name in ("same", "rounded"))
        found += checks.same_weights(feed.name, logits.values, same, rounded, logits.positions)
    same, rounded = (known[name].at(first.positions) for name in ("same", "rounded"))
    found.append(checks.top1(first.values, same, rounded))
    for feed, logits in zip(feeds[1:], runs[1:], strict=True):
        if common := sorted(set(first.positions) & set(logits.positions)):
            pair, base = (
                (first.at(common), logits.at(common)),
                (known["same"].at(common), known["rounded"].at(common)),
            )
            found.append(checks.agreement(f"{feeds[0].name} = {feed.name}", *pair, *base))
    if "other" in known:
        where, wrong = known["other"].positions, {"short": "long", "long": "short"}[kind]
        four = (first.at(where), known["same"].at(where), known["rounded"].at(where), known["other"].values)
        found.append(checks.nearer_rope(*four, kind, wrong))
    following = [ids[p + 1] if p + 1 < len(ids) else None for p in first.positions]
    quality = checks.quality(first.values, known["original"].values, following)
    found.append(checks.original_weights(quality, checks.quality(rounded, known["original"].values, following)))

    failures = [check.sentence() for check in found if not check.passed]
    return Report(
        file=str(path),
        checkpoint=source.name + (f"@{source.revision}" if source.revision else ""),
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
        seconds={"file": round(ran - started, 2), "reference": round(time.monotonic() - ran, 2)},
    )


def plan(count: int, chunk: int, context: int, short: bool) -> list[Feed]:
    """Ways of feeding: the first is measured against the checkpoint, the others must agree with it."""
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
    """`count` cut into pieces of these sizes, again and again."""
    found: list[int] = []
    for size in cycle(sizes):
        if sum(found) >= count:
            return tuple(found)
        found.append(min(size, count - sum(found)))
    return ()


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


def _streams(runs: list[Logits], config: ModelConfig, context: int, kind: str) -> list[Stream]:
    """The references that the checks need; see `export.reference`."""
    positions = tuple(sorted({position for run in runs for position in run.positions}))
    length, first = positions[-1] + 1, tuple(runs[0].positions)
    streams = [
        Stream("original", first[-1] + 1, first, context),
        Stream("same", length, positions, context, from_file=True),
        Stream("rounded", length, positions, context, from_file=True, rounded=True),
    ]
    if kind != "default":
        other = config.original_max_position_embeddings + (1 if kind == "short" else 0)
        streams.append(Stream("other", first[-1] + 1, first[-ROPE_POSITIONS:], other, from_file=True))
    return streams


def _tokens(folder: Path, config: ModelConfig, text: str | os.PathLike[str] | None) -> tuple[str, list[int]]:
    """What the text is called, and its token ids."""
    own = folder / "heldout.txt"
    path = Path(text) if text is not None else own if own.is_file() else None
    origin = "the text in export.verify" if path is None else str(path)
    try:
        words = TEXT if path is None else path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not text in UTF-8") from None
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None
    tokenizer = load_tokenizer(find_tokenizer(folder))
    ids = tokenizer.encode(words)
    if ids and max(ids) >= config.vocab_size:  # the runtime ends the process on a token it has no embedding for
        raise BadInput(f"{tokenizer.path} has token {max(ids)}, {config.path} says vocab_size {config.vocab_size}")
    return origin, ids


def print_report(report: Report) -> None:
    """For people: the checks and what quantization costs."""
    console = Console()
    console.print(
        f"{report.file}: {report.recipe}, {report.kv_cache} KV cache, {report.context_tokens} tokens", end=""
    )
    console.print(
        f" of context, {report.rotary_factors} rotary factors; against {report.checkpoint} on {report.text}"
    )
    table = Table("check", "measured", "at most", "", "")
    for check in report.checks:
        verdict = "[green]pass" if check.passed else "[bold red]FAIL"
        table.add_row(check.name, f"{check.measured:.3g} {check.unit}", f"{check.bound:.3g}", verdict, check.detail)
    console.print(table)
    quality = report.quality
    console.print(
        f"quantization costs, over {quality.positions} positions: KL {quality.kl_mean_nats:.4f} nats (worst "
        f"{quality.kl_max_nats:.4f}), top-1 the same in {quality.top1_agreement:.1%}, perplexity "
        f"{quality.perplexity_checkpoint:.2f} -> {quality.perplexity_file:.2f} "
        f"({quality.perplexity_change_percent:+.2f} %)"
    )
    console.print("[green]passed" if report.passed else f"[bold red]failed: {len(report.failures)} checks")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", metavar="FILE", help="the .pte")
    parser.add_argument("--checkpoint", help=f"hub id, folder, or {EMBEDDED} (default: {DEFAULT})")
    parser.add_argument("--revision", help="commit, branch or tag of a hub id")
    parser.add_argument(
        "--text", metavar="FILE", help="text in UTF-8 (default: the checkpoint's heldout.txt, or ours)"
    )
    parser.add_argument(
        "--tokens", type=int, help=f"how many to compare (default: {TOKENS}, {SHORT_TOKENS} with --short)"
    )
    parser.add_argument("--short", action="store_true", help="fewer tokens: what an export ends with")
    parser.add_argument("--long", action="store_true", help="also beyond original_max_position_embeddings")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    flags = vars(parser.parse_args(argv))
    as_json = flags.pop("json")
    quiet(verbose=False)
    console = Console(stderr=True)
    with console.status("reading") as status:
        report = verify(**flags, progress=status.update)
    if as_json:
        print(json.dumps(_finite(asdict(report)), indent=2))
    else:
        print_report(report)
    return 0 if report.passed else 1


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run(main)
