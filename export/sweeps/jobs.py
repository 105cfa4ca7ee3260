"""What a sweep does to a recipe, each step a function that a worker calls: calibrate, export, evaluate, bench.

Arguments and results are plain data, files are named by paths that every worker must see. `needed` says how much
memory a step takes, before it is begun.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from checkpoints.config import ModelConfig
from checkpoints.source import Source
from export.calibration.options import SEQUENCE, Calibration
from export.engine.native_output import hushed
from export.options import ExportOptions
from export.planning.needs import Needs
from export.progress import bar, quiet

LIBRARIES = 1_500_000_000  # bytes that torch, transformers and executorch take with what they do beside
CRASH = "C++ code ended the process"


@dataclasses.dataclass(frozen=True)
class Measuring:
    """How files are measured."""

    limit: int | None = 8  # windows of each text
    window: int = 512  # tokens
    engine: str = "runner"  # or "ours", as of export.bench desktop
    prompt_tokens: int = 256
    new_tokens: int = 32
    repeats: int = 3

    def bench_flags(self, context: int) -> dict[str, Any]:
        """Of export.bench, for a file of so many tokens: what does not fit is cut."""
        new = min(self.new_tokens, context // 4)
        prompt = min(self.prompt_tokens, context - new)
        return {"prompt_tokens": (prompt,), "new_tokens": new, "repeats": self.repeats, "warmups": 1, "cooldown": 0}


def needed(stage: str, config: ModelConfig, options: ExportOptions, calibration: Calibration | None = None) -> int:
    """Bytes that a step takes at most, about."""
    needs = Needs(config, options)
    if stage == "calibrate":
        import torch

        from export.calibration.layers import memory_needed  # imports torch

        assert calibration is not None
        return memory_needed(config, calibration.count * SEQUENCE, torch.get_num_threads()) + LIBRARIES // 2
    held = LIBRARIES + needs.stock(options.context)
    return held + 3 * 4 * 512 * config.vocab_size if stage == "evaluate" else held


def calibrate(source: Source, options: ExportOptions, calibration: Calibration, kept: str) -> dict[str, Any]:
    """Keep the checkpoint quantized at `kept`; a stopped calibration goes on there."""
    from export.calibration.calibrate import calibrate as make

    quiet(verbose=False)
    if not Path(kept).is_dir():
        with hushed(CRASH):
            make(source, options.recipe, calibration, Path(kept), bar)
    return {}


def export(source: Source, options: ExportOptions, kept: str | None, out: str, proof: bool) -> dict[str, Any]:
    """Export to `out`, of the kept checkpoint where it was calibrated; facts of the file."""
    quiet(verbose=False)
    with hushed(CRASH):
        from export.pipeline import export_checkpoint

        Path(out).parent.mkdir(parents=True, exist_ok=True)
        if kept is None:
            exported = export_checkpoint(source, Path(out), options, proof=proof)
        else:
            quantized = dataclasses.replace(source, folder=Path(kept), adapters=())
            exported = export_checkpoint(quantized, Path(out), options, proof=proof, original=source)
    manifest = exported.manifest
    return manifest["file"] | {"planned": manifest["planned"], "notes": manifest["notes"], "verified": proof}


def evaluate(file: str, checkpoint: str, measuring: Measuring) -> dict[str, Any]:
    """Quality of a file against its checkpoint, as export.evaluate has it."""
    quiet(verbose=False)
    with hushed(CRASH):
        from checkpoints.texts import find_texts
        from export.evaluation.evaluate import evaluate_texts
        from export.evaluation.models import CheckpointModel, FileModel

        found = evaluate_texts(
            [FileModel(Path(file))],
            CheckpointModel(checkpoint),
            find_texts("evaluation"),
            measuring.window,
            measuring.limit,
        )
    (model,) = found.models
    return dataclasses.asdict(model.quality) | {
        "tokens": found.tokens,
        "windows": found.windows,
        "control_passed": model.control_passed,
    }


def bench(file: str, measuring: Measuring, context: int) -> dict[str, Any]:
    """Speed of a file on the machine of this worker: medians over all repeats."""
    from checkpoints.errors import BadInput
    from export.bench.desktop.desktop import Desktop, measure
    from export.bench.outcome import Watch
    from export.bench.plan import make_plan

    quiet(verbose=False)
    plan = make_plan(pte=file, modes=("text",), **measuring.bench_flags(context))  # type: ignore[typeddict-item]
    with Watch() as watch:
        outcome = measure(plan, watch, Desktop(measuring.engine))  # type: ignore[arg-type]
    if outcome.document is None or outcome.problem:
        raise BadInput(outcome.problem or f"{file} could not be measured")
    (run,) = outcome.document["runs"]
    between = [ms for repeat in run["repeats"] for ms in repeat["token_ms"]]
    return {
        "decode_ms": statistics.median(between),
        "prefill_tokens_per_s": run["summary"]["prefill_tokens_per_s"]["median"],
        "prompt_tokens": plan.prompt_tokens[0],
        "engine": measuring.engine,
        "device": outcome.document["device"]["model"],
    }
