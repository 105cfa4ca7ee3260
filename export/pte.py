"""From a Hugging Face checkpoint to a verified `.pte`: `python -m export.pte --out phi4-mini-8da4w.pte`.

The graph is made once and the weights are streamed once, side by side, into a file that appears under its name only
when it is whole and has passed a short verification. Memory: the graph (2 GB for Phi-4-mini) beside a few megabytes
of weights; then what the verification needs.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput, run
from checkpoints.source import DEFAULT, EMBEDDED, Source, resolve
from export.hush import hushed
from export.progress import Stages, quiet

if TYPE_CHECKING:
    from export.compare import Report
    from export.graph import Graph
    from export.quantize import Quantized, Recipe
    from export.tokenizer import Tokenizer

KV_CACHES = ("bf16", "fp32")
MIN_CHUNK = 2  # torch.export makes a dynamic length of at least two values


@dataclass(frozen=True)
class Exported:
    """What an export left behind."""

    path: Path
    manifest_path: Path
    tokenizer_path: Path
    manifest: dict[str, Any]


def export_pte(
    checkpoint: str | None = None,
    *,
    out: str | os.PathLike[str],
    revision: str | None = None,
    context: int = 4096,
    prefill_chunk: int = 256,
    kv_cache: str = "bf16",
    full_logits: bool = False,
    quantize: bool = True,
    group_size: int = 32,
    embedding_bits: int = 8,
    head_bits: int = 4,
    bos_id: int | None = None,
    eos_ids: Sequence[int] | None = None,
    save_quantized: str | os.PathLike[str] | None = None,
    verify: bool = True,
    verbose: bool = False,
) -> Exported:
    """Export a checkpoint (hub id, folder or "phi4-tiny") to `out`; tokenizer and manifest are put beside it.

    `context` and `prefill_chunk` count tokens. Raises BadInput for anything wrong with the input, and leaves nothing
    under the final names then, nor when interrupted or when the verification fails.
    """
    quiet(verbose)
    out, kept = Path(out), None if save_quantized is None else Path(save_quantized)
    with hushed(f"the export of {out} was ended by C++ code; --verbose shows more", verbose):
        _check_place(out)
        from export.folders import check_folder
        from export.quantize import Recipe  # imports torch

        if kept is not None:
            check_folder(kept)
        recipe = Recipe(quantize, group_size, embedding_bits, head_bits)
        source = resolve(checkpoint, revision)
        config = read_config(source.folder)
        _check_lengths(config, context, prefill_chunk, kv_cache)

        from export.graph import metadata
        from export.keep import save_quantized as save
        from export.manifest import make_manifest
        from export.quantized import open_quantized
        from export.tokenizer import check_tokenizer, find_tokenizer, load_tokenizer

        tokenizer = load_tokenizer(find_tokenizer(source.folder))
        notes = check_tokenizer(tokenizer, config)
        bos, eos = _ends(tokenizer, config, source.folder, bos_id, eos_ids)
        weights = functools.partial(open_quantized, source.folder, recipe)
        opened = weights()
        options = {
            "context": context,
            "prefill_chunk": prefill_chunk,
            "kv_cache": kv_cache,
            "full_logits": full_logits,
            "recipe": str(opened.recipe),
            "bos_id": bos,
            "eos_ids": list(eos),
        }
        methods = metadata(context, prefill_chunk, config.vocab_size, bos, eos)
        stages = Stages()
        with stages.running(), _aside(out) as partial:
            graph = _build(partial, weights, opened.config, opened.recipe, options, methods, stages)
            report = _verify(partial, out.name, source, stages) if verify else None
            with stages.stage("hash"):
                notes += tuple(getattr(opened, "notes", ()))
                manifest = make_manifest(partial, out.name, source, opened, options, graph, report, notes)
            if kept is not None:
                with stages.stage("keep quantized"):
                    save(opened, kept, lambda size: None)
            manifest["export"] = {"seconds": dict(stages.seconds), "peak_memory_bytes": stages.peak_bytes}
            return _publish(partial, out, source.folder, tokenizer.path, manifest)


def _ends(
    tokenizer: Tokenizer, config: ModelConfig, folder: Path, bos_id: int | None, eos_ids: Sequence[int] | None
) -> tuple[int, tuple[int, ...]]:
    """The ids that begin a text and end an answer: as given, else the checkpoint's."""
    from export.tokenizer import stop_ids

    bos = config.bos_token_id if bos_id is None else bos_id
    if bos is None:
        raise BadInput(f"{config.path} names no bos_token_id, give one with --bos-id")
    eos = tuple(eos_ids) if eos_ids else stop_ids(tokenizer, config, folder)
    for flag, token in (("--bos-id", bos), *(("--eos-ids", token) for token in eos)):
        if not 0 <= token < config.vocab_size:
            raise BadInput(f"{flag} {token} is not below vocab_size {config.vocab_size} of {config.path}")
    return bos, eos


def _build(
    partial: Path,
    weights: Callable[[], Quantized],
    config: ModelConfig,
    recipe: Recipe,
    options: dict[str, Any],
    methods: dict[str, int | bool | list[int]],
    stages: Stages,
) -> Graph:
    """Graph and weights side by side into `partial`; the graph's facts."""
    from export import assemble
    from export.graph import build_graph
    from export.stream import Beside, end, is_delegated, place

    placed = place(config, recipe, is_delegated)
    base = assemble.reserve(config.num_hidden_layers)
    total = end(placed)
    _make_room(partial, base + total)
    beside = Beside(partial, base, weights, placed)
    try:
        stages.begin("weights", total, lambda: beside.written)
        stages.begin("graph")
        graph = build_graph(
            config,
            recipe,
            context=options["context"],
            chunk=options["prefill_chunk"],
            kv_cache=options["kv_cache"],
            full_logits=options["full_logits"],
            constant_methods=methods,
            progress=lambda step: stages.describe("graph", f"graph: {step}"),
        )
        stages.end("graph")
        beside.join()
        stages.end("weights", beside.seconds)
    except BaseException:
        beside.stop()
        raise
    with stages.stage("assemble"):
        assemble.finish(partial, base, graph, placed)
    return graph


def _verify(partial: Path, name: str, source: Source, stages: Stages) -> Report:
    from export.verify import verify

    with stages.stage("verify"):
        report = verify(
            partial,
            str(source.folder),
            short=True,
            progress=lambda step: stages.describe("verify", f"verify: {step}"),
        )
    if not report.passed:
        raise VerificationFailed("the file does not compute what the model computes: " + "; ".join(report.failures))
    return replace(report, file=name)


class VerificationFailed(BadInput):
    """The new file failed its verification and was removed."""


def _check_place(out: Path) -> None:
    folder = out.resolve().parent
    if out.suffix != ".pte":
        raise BadInput(f"--out {out} does not end in .pte")
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder")
    if not folder.is_dir():
        raise BadInput(f"--out {out}: the folder {folder} does not exist")
    try:  # os.access says yes to root on a read-only disk
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise BadInput(f"--out {out}: the folder {folder} cannot be written: {problem.strerror}") from None


def _check_lengths(config: ModelConfig, context: int, chunk: int, kv_cache: str) -> None:
    if kv_cache not in KV_CACHES:
        raise BadInput(f"--kv-cache {kv_cache} is none of {', '.join(KV_CACHES)}")
    if not MIN_CHUNK <= context <= config.max_position_embeddings:
        limit = f"{MIN_CHUNK} to {config.max_position_embeddings} (max_position_embeddings of {config.path})"
        raise BadInput(f"--context {context} is not within {limit}")
    if not MIN_CHUNK <= chunk <= context:
        raise BadInput(f"--prefill-chunk {chunk} is not within {MIN_CHUNK} to {context}, the context")
    if config.sliding_window is not None and config.sliding_window < context:
        raise BadInput(
            f"{config.path}: sliding_window {config.sliding_window} is shorter than the context {context}, "
            f"and files have no sliding window: give --context {config.sliding_window} or less"
        )


def _make_room(path: Path, size: int) -> None:
    """Reserve the whole file at once, so that a full disk is known before the work and not after."""
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise BadInput(f"{path.parent} has {free / 1e6:,.1f} MB free, the file needs {size / 1e6:,.1f} MB")
    with open(path, "r+b") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A file beside `out` that is gone afterwards unless it was renamed, also after Ctrl-C and SIGTERM."""

    def leave(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    handle, name = tempfile.mkstemp(dir=out.resolve().parent, prefix=f".{out.name}.", suffix=".partial")
    os.close(handle)
    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: its owner handles signals
        before = None
    try:
        yield Path(name)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        Path(name).unlink(missing_ok=True)


def _publish(partial: Path, out: Path, folder: Path, tokenizer: Path, manifest: dict[str, Any]) -> Exported:
    """Put tokenizer, manifest and, last, the file under their names."""
    from export.manifest import write_whole

    out.parent.mkdir(exist_ok=True)
    for name in (tokenizer.name, "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file() and not _same(folder / name, out.parent / name):
            write_whole(out.parent / name, (folder / name).read_bytes())
    manifest_path = out.with_suffix(".json")
    write_whole(manifest_path, json.dumps(manifest, indent=2).encode() + b"\n")
    os.chmod(partial, 0o644)
    os.replace(partial, out)
    return Exported(out, manifest_path, out.parent / tokenizer.name, manifest)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.pte", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", required=True, help="the .pte to write; tokenizer and manifest go beside it")
    parser.add_argument("--checkpoint", help=f"hub id, folder, or {EMBEDDED} (default: {DEFAULT})")
    parser.add_argument("--revision", help="commit, branch or tag of a hub id")
    parser.add_argument("--context", type=int, default=4096, help="tokens the KV cache holds (default: %(default)s)")
    parser.add_argument(
        "--prefill-chunk", type=int, default=256, help="tokens fed at once at most (default: %(default)s)"
    )
    parser.add_argument("--kv-cache", choices=KV_CACHES, default="bf16", help="type of its elements (default: bf16)")
    parser.add_argument("--full-logits", action="store_true", help="logits of all positions, for evaluation")
    parser.add_argument("--no-quantize", dest="quantize", action="store_false", help="float32, for reference")
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), default=32, help="columns to an int4 scale")
    parser.add_argument("--embedding-bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--head-bits", type=int, choices=(4, 8), default=4, help="bits of lm_head")
    parser.add_argument("--bos-id", type=int, help="default: the checkpoint's")
    parser.add_argument("--eos-ids", type=_ids, help="comma-separated; default: the checkpoint's")
    parser.add_argument("--save-quantized", metavar="DIR", help="also keep the quantized checkpoint")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="skip the verification at the end")
    parser.add_argument("--json", action="store_true", help="print the manifest")
    parser.add_argument("--verbose", action="store_true", help="show upstream's logs and warnings")
    flags = vars(parser.parse_args(argv))
    as_json = flags.pop("json")
    try:
        exported = export_pte(**flags)
    except VerificationFailed as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(exported.manifest, indent=2))
    else:
        from export.manifest import print_manifest

        print_manifest(exported)
    return 0


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids like 200020,199999") from None


if __name__ == "__main__":
    run(main)
