"""One calibration from top to bottom: a float checkpoint and texts become a kept quantized checkpoint.

What is saved is an ordinary one, as `export.quantization.saved_writer` says: nothing but levels, scales and, where a
method folds, norms differ from rounding to nearest. Beside the weights `calibration.json` says how they were made and
what they lose of the original.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.config import ADAPTER
from checkpoints.errors import BadInput
from checkpoints.files import Progress, check_folder, input_sha256, sha256
from checkpoints.lora_settings import WEIGHTS
from checkpoints.phi4mm_config import TEXT
from checkpoints.roles import EMBEDDING
from checkpoints.source import Source
from checkpoints.untied import Untied
from checkpoints.weights import open_checkpoint
from export.calibration import sensitivity
from export.calibration.fidelity import measure
from export.calibration.layers import memory_needed, quantize_layers
from export.calibration.mixing import candidates, choice_record, choose, mixed, weight_bytes
from export.calibration.options import SEQUENCE, Calibration
from export.calibration.sensitivity import Sensitivity, measure_sensitivities
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
    progress: Callable[[str, int], AbstractContextManager[Progress]],
) -> dict[str, Any]:
    """Write the checkpoint quantized at `out`, whole or not at all; returns what calibration.json holds.

    Of a multimodal checkpoint that is its text model, without adapters but the one that is merged.

    Stopped, it leaves the layers that are finished beside `out` and goes on from there next time. `progress` is told
    of each stage what it does and how many weights that are, then each piece's. Raises BadInput for anything wrong
    with the input.
    """
    check_folder(out)
    if not recipe.quantized:
        raise BadInput("--calibrate chooses the levels of quantized weights, and --no-quantize leaves none")
    checkpoint = open_checkpoint(source.folder, source.adapters, modalities=[TEXT], own_adapter=source.own_adapter)
    quantizing = Quantizing(Untied(checkpoint), recipe)
    config = quantizing.config
    ids = sequences(source.folder, config, calibration.texts, calibration.count, SEQUENCE)
    names = candidates(config, quantizing.recipe, calibration.extra) if calibration.extra else []
    needed = memory_needed(config, ids.numel(), torch.get_num_threads())
    needed += sensitivity.memory_needed(config, len(names)) if names else 0
    if calibration.device == "cpu" and needed > (left := memory_left()):
        raise BadInput(
            f"calibrating {source.folder} on {ids.numel()} tokens takes about {needed / 1e9:.1f} GB of memory, "
            f"{left / 1e9:.1f} GB are left"
        )
    record = _record(source, quantizing, calibration)
    work = Work(work_folder(out), record, 2 * nbytes(plan(quantizing)))
    linears = [quantizing.untied.shape(name) for name in quantizing.untied.names() if name != EMBEDDING]
    total = sum(shape[0] * shape[1] for shape in linears if len(shape) == 2)
    with torch.no_grad():
        with workers() as pool:
            if calibration.extra:
                quantizing, record["mixed"] = _mix(quantizing, calibration, ids, names, work, pool, progress)
                record["recipe"] = quantizing.recipe.as_json()
            with progress("calibrate", total) as count:
                quantize_layers(quantizing, calibration, ids, work, pool, count)
        calibrated = Calibrated(work, quantizing)
        record["fidelity"] = measure(source.folder, quantizing, calibrated)
    save_quantized(calibrated, out, beside={RECORD: record})
    work.remove()
    return record


def _mix(
    quantizing: Quantizing,
    calibration: Calibration,
    ids: Tensor,
    names: list[str],
    work: Work,
    pool: Executor,
    progress: Callable[[str, int], AbstractContextManager[Progress]],
) -> tuple[Quantizing, dict[str, Any]]:
    """With the linears in int8 that its extra bytes pay for, and what is told of the choice."""
    config, before = quantizing.config, quantizing.recipe
    assert calibration.extra is not None

    def measured() -> dict[str, Any]:
        watch = functools.partial(progress, "measure each linear")
        found = measure_sensitivities(quantizing, ids, names, calibration.device, pool, watch)
        return {"linears": [dataclasses.asdict(one) for one in found]}

    sensitivities = [Sensitivity(**one) for one in work.remembered("sensitivities", measured)["linears"]]
    budget = calibration.extra.budget(weight_bytes(config, before))
    after = mixed(before, choose(sensitivities, budget))
    told = choice_record(config, before, after, budget, sensitivities)
    return Quantizing(quantizing.untied, after), told


def _record(source: Source, quantizing: Quantizing, calibration: Calibration) -> dict[str, Any]:
    """Everything that decides the bytes."""
    adapters = [
        {"scale": adapter.scale, "sha256": {name: sha256(adapter.folder / name) for name in (ADAPTER, WEIGHTS)}}
        for adapter in source.adapters
    ]
    extra = {"extra_bytes": dataclasses.asdict(calibration.extra)} if calibration.extra else {}
    return extra | {
        "method": calibration.name,
        "recipe": quantizing.recipe.as_json(),
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
