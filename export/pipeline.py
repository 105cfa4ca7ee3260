"""One export from checkpoint to verified file, step by step; `export.pte` is the command.

Weights are streamed in other processes beside the graph, into a file that appears under its name only when it is
whole and has passed a short verification. Memory: the graph's libraries beside a few megabytes of weights; then what
the verification needs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.adapters import WEIGHTS as ADAPTER_WEIGHTS
from checkpoints.config import ADAPTER, ModelConfig, read_config
from checkpoints.errors import BadInput
from checkpoints.files import aside, check_folder, reserve, sha256
from checkpoints.source import Source
from export.models.kv_cache import DTYPES, cache_bytes
from export.options import ExportOptions
from export.program.weights import Placed, WeightWriter, end, place, program_room
from export.progress import Stages
from export.quantization.saved import open_quantized
from export.verification.verify import SHORT, check_memory, verify

if TYPE_CHECKING:
    from export.engine.tokenizer import Tokenizer
    from export.manifest import Inputs, Manifest
    from export.program.trace import Graph
    from export.verification.compare import Report

PROCESSES = 2  # that write weights: one beside the graph, and its core when the graph is done


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
    stages = Stages()
    with WeightWriter(PROCESSES) as writer, stages.running():  # they import while this process checks
        if quantized_out is not None:
            check_folder(quantized_out)
        config = read_config(source.folder)
        options.check(config)
        opened = open_quantized(source, options.recipe)
        config, options = opened.config, replace(options, recipe=opened.recipe)
        placed, room = place(config, options.recipe), program_room(config.num_hidden_layers)
        if proof:
            cache = cache_bytes(config, options.context, DTYPES[options.kv_cache])
            check_memory(out, room + end(placed) + cache)
        with aside(out) as partial, ThreadPoolExecutor(1) as beside:
            reserve(partial, room + end(placed))
            stages.begin("weights", end(placed), lambda: writer.written)
            writer.start(partial, room, source, opened.recipe, placed)

            from export.engine.tokenizer import check_tokenizer, find_tokenizer, load_tokenizer
            from export.manifest import make_manifest
            from export.publishing import Companions, publish_all

            with stages.stage("tokenizer"):
                tokenizer = load_tokenizer(find_tokenizer(source.folder))
                used = config if not options.eos_ids else replace(config, eos_token_ids=())
                notes = check_tokenizer(tokenizer, used) + opened.notes
                options = _with_ids(options, config, tokenizer, source.folder)
                companions = Companions(out, tokenizer.path)
            with stages.stage("graph"):
                graph = _graph(config, options, stages)
            hashing = beside.submit(_hashes, source, opened.files, tokenizer)
            digests = writer.join()
            stages.end("weights", writer.seconds)
            _assemble(partial, room, graph, placed, digests, stages)
            hashed = beside.submit(sha256, partial)
            report = _prove(partial, out.name, source, stages) if proof else None
            if quantized_out is not None:
                from export.quantization.saving import save_quantized

                with stages.stage("save quantized"):
                    save_quantized(opened, quantized_out)
            with stages.stage("hash"):
                inputs, digest = hashing.result(), hashed.result()
            file: dict[str, str | int] = {"name": out.name, "bytes": partial.stat().st_size, "sha256": digest}
            manifest = make_manifest(config, options, graph.planned_bytes, file, source, inputs, notes, report)
            manifest["export"] = {"seconds": dict(stages.seconds), "peak_memory_bytes": stages.peak_bytes}
            path = publish_all(partial, companions, manifest)
            return Exported(out, path, companions.tokenizer, manifest)


def _with_ids(options: ExportOptions, config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> ExportOptions:
    """With the ids that begin a text and end an answer: as given, else the checkpoint's."""
    from export.engine.tokenizer import named_tokens, read_settings, stop_ids

    named = tokenizer.token_id(named_tokens(read_settings(folder)).get("bos_token", ""))
    bos = next((token for token in (options.bos_id, config.bos_token_id, named) if token is not None), None)
    if bos is None:
        raise BadInput(f"{config.path} names no bos_token_id that is a token's, give one with --bos-id")
    eos = options.eos_ids or stop_ids(tokenizer, config, folder)
    for flag, token in (("--bos-id", bos), *(("--eos-ids", token) for token in eos)):
        if not 0 <= token < config.vocab_size:
            raise BadInput(f"{flag} {token} is not below vocab_size {config.vocab_size} of {config.path}")
    return replace(options, bos_id=bos, eos_ids=eos)


def _graph(config: ModelConfig, options: ExportOptions, stages: Stages) -> Graph:
    stages.describe("graph", "graph: import")
    from export.program.trace import build_graph  # takes seconds

    return build_graph(config, options, lambda step: stages.describe("graph", f"graph: {step}"))


def _assemble(
    partial: Path, room: int, graph: Graph, placed: list[Placed], digests: dict[str, str], stages: Stages
) -> None:
    from export.program.assemble import finish

    with stages.stage("assemble"):
        finish(partial, room, graph, placed, digests)


def _prove(partial: Path, name: str, source: Source, stages: Stages) -> Report:
    with stages.stage("verify"):
        report = verify(partial, source, SHORT, lambda step: stages.describe("verify", f"verify: {step}"))
    if not report.passed:
        raise VerificationFailed("the file does not compute what the model computes: " + "; ".join(report.failures))
    return replace(report, file=name)


def _hashes(source: Source, weights: list[Path], tokenizer: Tokenizer) -> Inputs:
    """sha256 of the files that decide an export, by name, and of each adapter's."""
    from export.engine.tokenizer import COMPANIONS

    texts = [source.folder / name for name in ("config.json", "generation_config.json", *COMPANIONS)]
    used = {tokenizer.path, *weights, *(path for path in texts if path.is_file())}
    adapters = [
        {
            "name": adapter.folder.resolve().name,
            "scale": adapter.scale,
            "sha256": {name: sha256(adapter.folder / name) for name in (ADAPTER, ADAPTER_WEIGHTS)},
        }
        for adapter in source.adapters
    ]
    return {"sha256": {path.name: sha256(path) for path in sorted(used)}, "adapters": adapters}
