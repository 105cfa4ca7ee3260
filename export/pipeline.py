"""One export from checkpoint to verified file, step by step; `export.pte` is the command.

Weights are streamed in other processes beside the graph, into a file that appears under its name only when it is
whole and has passed a short verification. Memory: the graph's libraries beside a few megabytes of weights; then what
the verification needs.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.config import ADAPTER, ModelConfig, read_config
from checkpoints.errors import BadInput
from checkpoints.files import aside, check_folder, input_sha256, reserve, sha256
from checkpoints.lora_settings import WEIGHTS as ADAPTER_WEIGHTS
from checkpoints.model_card import read_card
from checkpoints.source import Source
from checkpoints.weights import wanted_config
from export.engine.tokenizer import (
    COMPANIONS,
    Tokenizer,
    check_tokenizer,
    find_tokenizer,
    load_tokenizer,
    named_tokens,
    read_settings,
    stop_ids,
)
from export.manifest import Inputs, Manifest, make_manifest
from export.models.kv_cache import CACHE_DTYPES, cache_bytes
from export.options import ExportOptions
from export.planning.places import end, place, program_room
from export.program.weight_writer import ENVIRONMENT, weight_jobs
from export.progress import Counter, Stages, bar
from export.publishing import Companions, publish_all
from export.quantization.saved_reader import RECORD, float_original, open_quantized, read_record
from export.subprocess_call import Pool
from export.verification.extent import SHORT
from export.verification.memory import check_memory
from export.verification.verify import verify

if TYPE_CHECKING:
    from export.calibration.options import Calibration
    from export.verification.compare import Report

TEXT_WEIGHTS = "text-weights"  # before the names of files that are not the checkpoint's own
PROCESSES = 2  # that write weights: the second has the graph's core when the graph is done


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
    source: Source,
    out: Path,
    options: ExportOptions,
    quantized_out: Path | None = None,
    proof: bool = True,
    original: Source | None = None,
) -> Exported:
    """Export a checkpoint to `out`, its tokenizer and manifest beside it, and keep it quantized at `quantized_out`.

    `original` is the float checkpoint that a calibrated `source` is of: the proof compares with it, too.

    Raises BadInput for anything wrong with the input, and leaves nothing under the final names then, nor when
    interrupted or when the proof fails.
    """
    stages, chosen = Stages(), options
    if original is None:
        original = float_original(source)
    with (
        Pool(PROCESSES, "export.program.weight_writer", environment=ENVIRONMENT) as pool,
        stages.running(),
    ):  # they import while this process checks
        if quantized_out is not None:
            check_folder(quantized_out)
        config = read_config(source.folder)
        options.check(config)
        opened = open_quantized(source, options.recipe)
        if quantized_out is not None and opened.config.multimodal is not None:
            raise BadInput(
                f"--save-quantized {quantized_out}: {source.folder} takes more than text, of which only the text "
                "model can be kept (python -m export.quantize)"
            )
        config, options = opened.config, replace(options, recipe=opened.recipe).suited(opened.config)
        placed, room = place(config, options.recipe), program_room(config)
        tokenizer_path = find_tokenizer(source.folder)
        inputs = _inputs(source, [*opened.files, tokenizer_path])
        if proof:
            cache = cache_bytes(config, options.context, CACHE_DTYPES[options.kv_cache])
            check_memory(out, room + end(placed) + cache)
        with aside(out) as partial:
            reserve(partial, room + end(placed))
            # Hashes first: they read the checkpoint from front to end, which a disk does fastest.
            hashes = [(str(path), functools.partial(input_sha256, path)) for path in inputs]
            weights = weight_jobs(partial, room, source, opened.recipe, placed)
            stages.begin("weights", end(placed), lambda: written.value)
            writing = pool.start([*hashes, *weights], (written := Counter()).add)
            with stages.stage("tokenizer"):
                tokenizer = load_tokenizer(tokenizer_path)
                used = config if not options.eos_ids else replace(config, eos_token_ids=())
                notes = check_tokenizer(tokenizer, used) + opened.notes
                options = _with_ids(options, config, tokenizer, source.folder)
                companions = Companions(out, tokenizer_path)
            with stages.stage("graph"):
                from export.program.assemble import write_program  # imports executorch, which takes seconds
                from export.program.trace import build_graph

                graph = build_graph(config, options, lambda step: stages.describe("graph", f"graph: {step}"))
            digests = writing.join()
            stages.end("weights", writing.seconds)
            with stages.stage("assemble"):
                write_program(partial, room, graph, placed, digests)
            hashing = pool.start([("file", functools.partial(sha256, partial))])
            report = _prove(partial, out.name, source, original, stages) if proof else None
            if quantized_out is not None:
                from export.quantization.saved_writer import save_quantized

                with stages.stage("save quantized"):
                    save_quantized(opened, quantized_out)
            with stages.stage("hash"):
                digest = hashing.join()["file"]
            file: dict[str, str | int] = {"name": out.name, "bytes": partial.stat().st_size, "sha256": digest}
            hashed = _hashed(source, inputs, digests)
            manifest = make_manifest(
                config, options, graph.planned_bytes, file, source, hashed, notes, asdict(report) if report else None
            )
            manifest["chosen"] = {"bos_id": chosen.bos_id, "eos_ids": list(chosen.eos_ids)}  # None, []: checkpoint's
            manifest["checkpoint"]["card"] = read_card((original or source).folder)
            manifest["calibration"] = read_record(source.text_folder)
            manifest["export"] = {"seconds": dict(stages.seconds), "peak_memory_bytes": stages.peak_bytes}
            return Exported(out, publish_all(partial, companions, manifest), companions.tokenizer, manifest)


def export_calibrated(
    source: Source,
    out: Path,
    options: ExportOptions,
    calibration: Calibration,
    quantized_out: Path | None = None,
    proof: bool = True,
) -> Exported:
    """Calibrate a checkpoint, export that and prove it against the original; kept at `quantized_out` if given."""
    from export.calibration.calibrate import calibrate  # imports transformers

    options.check(read_config(source.folder))
    multimodal = wanted_config(source).multimodal is not None
    if source.text_weights is not None:
        raise BadInput(
            f"--text-weights {source.text_weights} are quantized already, --calibrate needs the original's"
        )
    if multimodal and calibration.method.fold:
        raise BadInput(
            f"--calibrate {calibration.name} folds scales into norms, which the adapters of {source.folder} read: "
            "use --calibrate gptq or scales"
        )
    Companions(out, find_tokenizer(source.folder))  # a name that is taken costs no calibration
    kept = quantized_out or out.resolve().with_name(f".{out.name}.quantized")  # of one name, so that it can go on
    try:
        calibrate(source, options.recipe, calibration, kept, bar)
        if multimodal:
            quantized = replace(source, text_weights=kept)
        else:
            quantized = replace(source, folder=kept, adapters=(), own_adapter=None)
        return export_checkpoint(quantized, out, options, proof=proof, original=source)
    finally:
        if quantized_out is None:
            shutil.rmtree(kept, ignore_errors=True)


def _with_ids(options: ExportOptions, config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> ExportOptions:
    """With the ids that begin a text and end an answer: as given, else the checkpoint's."""
    named = tokenizer.token_id(named_tokens(read_settings(folder)).get("bos_token", ""))
    bos = next((token for token in (options.bos_id, config.bos_token_id, named) if token is not None), None)
    if bos is None:
        raise BadInput(f"{config.path} names no bos_token_id that is a token's, give one with --bos-id")
    eos = options.eos_ids or stop_ids(tokenizer, config, folder)
    for flag, token in (("--bos-id", bos), *(("--eos-ids", token) for token in eos)):
        if not 0 <= token < config.vocab_size:
            raise BadInput(f"{flag} {token} is not below vocab_size {config.vocab_size} of {config.path}")
    return replace(options, bos_id=bos, eos_ids=eos)


def _prove(partial: Path, name: str, source: Source, original: Source | None, stages: Stages) -> Report:
    with stages.stage("verify"):
        report = verify(partial, source, SHORT, lambda step: stages.describe("verify", f"verify: {step}"), original)
    if not report.passed:
        raise VerificationFailed("the file does not compute what the model computes: " + "; ".join(report.failures))
    return replace(report, file=name)


def _inputs(source: Source, used: list[Path]) -> list[Path]:
    """The files that decide an export: of the checkpoint and of its adapters."""
    texts = [source.folder / name for name in ("config.json", "generation_config.json", *COMPANIONS)]
    texts += [source.text_folder / name for name in ("config.json", RECORD)]
    adapters = [adapter.folder / name for adapter in source.adapters for name in (ADAPTER, ADAPTER_WEIGHTS)]
    return sorted({*used, *adapters, *(path for path in texts if path.is_file())})


def _named(source: Source, path: Path) -> str:
    """A file's name in the checkpoint: adapters of a multimodal model lie in folders of their own."""
    if source.text_weights is not None and path.is_relative_to(source.text_weights):
        return f"{TEXT_WEIGHTS}/{path.relative_to(source.text_weights).as_posix()}"
    return path.relative_to(source.folder).as_posix() if path.is_relative_to(source.folder) else path.name


def _hashed(source: Source, inputs: list[Path], results: Mapping[str, str]) -> Inputs:
    """sha256 of those files, by name, each adapter's apart."""
    own = {
        adapter.folder: {
            "name": adapter.folder.resolve().name,
            "scale": adapter.scale,
            "sha256": {name: results[str(adapter.folder / name)] for name in (ADAPTER, ADAPTER_WEIGHTS)},
        }
        for adapter in source.adapters
    }
    files = {_named(source, path): results[str(path)] for path in inputs if path.parent not in own}
    return {"sha256": files, "adapters": list(own.values())}
