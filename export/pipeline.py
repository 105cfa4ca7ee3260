"""One export from checkpoint to verified file, step by step; `export.pte` is the command.

The graph is made once and the weights are streamed once, side by side, into a file that appears under its name only
when it is whole and has passed a short verification. Memory: the graph (2 GB for Phi-4-mini) beside a few megabytes
of weights; then what the verification needs.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput
from checkpoints.files import aside, check_folder, publish, reserve, sha256, write_whole
from checkpoints.source import Source
from export.engine.tokenizer import Tokenizer, check_tokenizer, find_tokenizer, load_tokenizer, stop_ids
from export.manifest import Manifest, make_manifest, manifest_path
from export.options import ExportOptions
from export.program import assemble
from export.program.trace import Graph, build_graph
from export.program.weights import Beside, end, place
from export.progress import Stages
from export.quantization.rounding import Quantized
from export.quantization.saved import open_quantized
from export.quantization.saving import save_quantized
from export.verification.verify import SHORT, verify

if TYPE_CHECKING:
    from export.verification.compare import Report

INPUTS = (".json", ".jinja", ".safetensors", ".bin", ".model")  # of a checkpoint's files, those that are hashed
BESIDE = ("tokenizer_config.json", "chat_template.jinja")  # what lies beside a file, with its tokenizer


class VerificationFailed(BadInput):
    """The new file failed its verification and was removed."""

    exit_code = 1


@dataclass(frozen=True)
class Exported:
    """What an export left behind."""

    path: Path
    manifest_path: Path
    tokenizer_path: Path
    manifest: Manifest


def export_checkpoint(
    source: Source, out: Path, options: ExportOptions, quantized_out: Path | None = None, proof: bool = True
) -> Exported:
    """Export a checkpoint to `out`, its tokenizer and manifest beside it, and keep it quantized at `quantized_out`.

    Raises BadInput for anything wrong with the input, and leaves nothing under the final names then, nor when
    interrupted or when the proof fails.
    """
    check_place(out)
    if quantized_out is not None:
        check_folder(quantized_out)
    config = read_config(source.folder)
    options.check(config)
    tokenizer = load_tokenizer(find_tokenizer(source.folder))
    notes = check_tokenizer(tokenizer, config)
    options = _with_ids(options, config, tokenizer, source.folder)
    weights = functools.partial(open_quantized, source.folder, options.recipe)
    opened = weights()
    options = replace(options, recipe=opened.recipe)

    stages = Stages()
    with stages.running(), aside(out) as partial:
        graph = _write(partial, weights, opened.config, options, stages)
        report = _prove(partial, out.name, source, stages) if proof else None
        with stages.stage("hash"):
            inputs = {path.name: sha256(path) for path in sorted(source.folder.iterdir()) if path.suffix in INPUTS}
            file: dict[str, str | int] = {
                "name": out.name,
                "bytes": partial.stat().st_size,
                "sha256": sha256(partial),
            }
        if quantized_out is not None:
            with stages.stage("save quantized"):
                save_quantized(opened, quantized_out)
        planned, notes = sum(graph.planned_bytes), notes + opened.notes
        manifest = make_manifest(opened.config, options, planned, file, source, inputs, notes, report)
        manifest["export"] = {"seconds": dict(stages.seconds), "peak_memory_bytes": stages.peak_bytes}
        return _publish(partial, out, tokenizer.path, manifest)


def check_place(out: Path) -> None:
    """Raise BadInput unless a `.pte` can be written there."""
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


def _with_ids(options: ExportOptions, config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> ExportOptions:
    """With the ids that begin a text and end an answer: as given, else the checkpoint's."""
    bos = config.bos_token_id if options.bos_id is None else options.bos_id
    if bos is None:
        raise BadInput(f"{config.path} names no bos_token_id, give one with --bos-id")
    eos = options.eos_ids or stop_ids(tokenizer, config, folder)
    for flag, token in (("--bos-id", bos), *(("--eos-ids", token) for token in eos)):
        if not 0 <= token < config.vocab_size:
            raise BadInput(f"{flag} {token} is not below vocab_size {config.vocab_size} of {config.path}")
    return replace(options, bos_id=bos, eos_ids=eos)


def _write(
    partial: Path, weights: Callable[[], Quantized], config: ModelConfig, options: ExportOptions, stages: Stages
) -> Graph:
    """Graph and weights side by side into `partial`; the graph's facts."""
    placed = place(config, options.recipe)
    base, total = assemble.reserve(config.num_hidden_layers), end(placed)
    reserve(partial, base + total)
    beside = Beside(partial, base, weights, placed)
    try:
        stages.begin("weights", total, lambda: beside.written)
        stages.begin("graph")
        graph = build_graph(config, options, lambda step: stages.describe("graph", f"graph: {step}"))
        stages.end("graph")
        beside.join()
        stages.end("weights", beside.seconds)
    except BaseException:
        beside.stop()
        raise
    with stages.stage("assemble"):
        assemble.finish(partial, base, graph, placed)
    return graph


def _prove(partial: Path, name: str, source: Source, stages: Stages) -> Report:
    with stages.stage("verify"):
        report = verify(partial, source, SHORT, lambda step: stages.describe("verify", f"verify: {step}"))
    if not report.passed:
        raise VerificationFailed("the file does not compute what the model computes: " + "; ".join(report.failures))
    return replace(report, file=name)


def _publish(partial: Path, out: Path, tokenizer: Path, manifest: Manifest) -> Exported:
    """Put tokenizer, manifest and, last, the file under their names."""
    for source in (tokenizer, *(tokenizer.parent / name for name in BESIDE)):
        target = out.parent / source.name
        if source.is_file() and not (target.exists() and target.samefile(source)):
            write_whole(target, source.read_bytes())
    write_whole(manifest_path(out), json.dumps(manifest, indent=2).encode() + b"\n")
    publish(partial, out)
    return Exported(out, manifest_path(out), out.parent / tokenizer.name, manifest)
