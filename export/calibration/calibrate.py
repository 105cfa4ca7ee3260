"""One calibration from top to bottom: a float checkpoint and texts become a kept quantized checkpoint.

What is saved is an ordinary one, as `export.quantization.saved_writer` says: nothing but levels, scales and, where a
method folds, norms differ from rounding to nearest. Beside the weights `calibration.json` says how they were made and
what they lose of the original.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from checkpoints.config import ADAPTER
from checkpoints.errors import BadInput
from checkpoints.files import Progress, check_folder, input_sha256, sha256
from checkpoints.lora_settings import WEIGHTS
from checkpoints.roles import EMBEDDING
from checkpoints.source import Source
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.calibration.fidelity import measure
from export.calibration.layers import memory_needed, quantize_layers
from export.calibration.options import SEQUENCE, Calibration
from export.calibration.tokens import sequences
from export.calibration.work import Calibrated, Work, work_folder
from export.engine.memory import memory_left
from export.quantization.recipe import Recipe
from export.quantization.rounding import Quantizing
from export.quantization.saved_reader import RECORD
from export.quantization.saved_writer import nbytes, plan, save_quantized
from export.workers import workers

PACKAGES = ("pocketphi", "torch", "transformers")


def calibrate(
    source: Source,
    recipe: Recipe,
    calibration: Calibration,
    out: Path,
    progress: Callable[[int], AbstractContextManager[Progress]],
) -> dict[str, Any]:
    """Write the checkpoint quantized at `out`, whole or not at all; returns what calibration.json holds.

    Stopped, it leaves the layers that are finished beside `out` and goes on from there next time. `progress` is told
    how many weights there are to quantize, then each piece's. Raises BadInput for anything wrong with the input.
    """
    check_folder(out)
    if not recipe.quantized:
        raise BadInput("--calibrate chooses the levels of quantized weights, and --no-quantize leaves none")
    quantizing = Quantizing(Untied(open_checkpoint(source.folder, source.adapters)), recipe)
    config = quantizing.config
    ids = sequences(source.folder, config, calibration.texts, calibration.count, SEQUENCE)
    needed = memory_needed(config, ids.numel(), torch.get_num_threads())
    if calibration.device == "cpu" and needed > (left := memory_left()):
        raise BadInput(
            f"calibrating {source.folder} on {ids.numel()} tokens takes about {needed / 1e9:.1f} GB of memory, "
            f"{left / 1e9:.1f} GB are left"
        )
    record = _record(source, quantizing, calibration)
    kept_bytes = nbytes(plan(quantizing))
    work = Work(work_folder(out), record, 2 * kept_bytes)
    linears = [quantizing.untied.shape(name) for name in quantizing.untied.names() if name != EMBEDDING]
    total = sum(shape[0] * shape[1] for shape in linears if len(shape) == 2)
    with torch.no_grad():
        with workers() as pool, progress(total) as count:
            quantize_layers(quantizing, calibration, ids, work, pool, count)
        calibrated = Calibrated(work, quantizing)
        record["fidelity"] = measure(source.folder, quantizing, calibrated)
    save_quantized(calibrated, out, beside={RECORD: record})
    work.remove()
    return record


def _record(source: Source, quantizing: Quantizing, calibration: Calibration) -> dict[str, Any]:
    """Everything that decides the bytes."""
    adapters = [
        {"scale": adapter.scale, "sha256": {name: sha256(adapter.folder / name) for name in (ADAPTER, WEIGHTS)}}
        for adapter in source.adapters
    ]
    return {
        "method": calibration.name,
        "recipe": dataclasses.asdict(quantizing.recipe),
        "sequences": calibration.count,
        "sequence_tokens": SEQUENCE,
        "texts": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in calibration.texts.items()},
        "checkpoint": {
            "name": str(source),
            "sha256": {file.name: input_sha256(file) for file in [*quantizing.files, quantizing.config.path]},
            "adapters": adapters,
        },
        # Other vector units add in another order, and a sum on the border between two levels falls to either side.
        "device": torch.backends.cpu.get_cpu_capability() if calibration.device == "cpu" else _cuda_name(),
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def _cuda_name() -> str:
    return str(torch.cuda.get_device_name())
