"""Measures an export of a full-size Phi-4-mini, ours against upstream's, in one run on one machine.

    python -m benchmarks.export [--checkpoint DIR | --layers N …] [--no-peer] [--json]

Ours is `export.pte --no-verify` inside a memory limit, then `export.verify` inside its own; upstream's is the
three stages of `benchmarks.upstream`, which may have nearly the whole machine. Every stage is a process of
its own, and starts with the checkpoint out of the page cache. Without --checkpoint the weights are random, of
the published sizes: neither path looks at values.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks import measure, upstream
from benchmarks.measure import GIB
from benchmarks.report import print_export
from checkpoints.config import ModelConfig, read_config
from checkpoints.errors import BadInput, run
from export.progress import quiet

SIZES = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab")
CACHE_ITEM_BYTES = {"bf16": 2, "fp32": 4}
PEER_SHARE = 0.9  # of the memory that is free: if it must be killed, then it and nothing else


def benchmark(
    checkpoint: Path,
    work: Path,
    *,
    context: int,
    chunk: int,
    peer_chunk: int,
    kv_cache: str,
    limit_gib: float,
    verify_limit_gib: float,
    peer: bool,
    console: Console,
) -> dict[str, Any]:
    """Run every stage, leaving ours.pte and upstream.pte in `work`. A failed stage is part of the result."""
    stages: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, Any]] = {}
    weights = sorted(checkpoint.glob("*.safetensors"))

    def stage(name: str, command: tuple[str, ...], limit_bytes: int | None) -> bool:
        for path in weights:
            measure.drop_from_cache(path)
        done = measure.run(command, limit_bytes)
        stages[name] = asdict(done) | {"failure": done.failure}
        ended = done.failure or f"{done.wall_s:.1f} s, {done.private_peak_bytes / 1e9:.2f} GB"
        console.print(f"{name}: {ended}", highlight=False)
        if limit_bytes is not None and done.limit_bytes is None:
            console.print(f"{name}: no memory limit can be enforced here, it ran without", style="yellow")
        if done.failure:
            console.print(done.tail, markup=False, highlight=False)
        return done.failure is None

    config = read_config(checkpoint)
    python = (sys.executable, "-m")
    ours, theirs = work / "ours.pte", work / "upstream.pte"
    options = (
        "--context",
        str(context),
        "--prefill-chunk",
        str(chunk),
        "--kv-cache",
        kv_cache,
        "--no-verify",
    )
    command: tuple[str, ...] = (
        *python,
        "export.pte",
        "--out",
        str(ours),
        "--checkpoint",
        str(checkpoint),
        *options,
    )
    where: dict[str, float] = {}
    if stage("ours: export", command, int(limit_gib * GIB)):
        files["ours"] = facts(ours, config, context, CACHE_ITEM_BYTES[kv_cache])
        where = json.loads(ours.with_suffix(".json").read_text())["export"]["seconds"]
        command = (*python, "export.verify", str(ours), "--checkpoint", str(checkpoint), "--short")
        stage("ours: verify", command, int(verify_limit_gib * GIB))
    if peer:
        limit = int(PEER_SHARE * psutil.virtual_memory().available)
        for name, command in upstream.commands(checkpoint, theirs, work, context, peer_chunk).items():
            if not stage(f"upstream: {name}", command, limit):
                break
            upstream.clean(work, name)
        else:
            files["upstream"] = facts(theirs, config, context, CACHE_ITEM_BYTES["fp32"])

    size = files.get("ours", files.get("upstream", {})).get("bytes", 0)
    command = (*python, "benchmarks.limits", "--checkpoint", str(checkpoint), "--bytes", str(size))
    limits = {}
    if stage("machine's limits", (*command, "--folder", str(work)), None):
        limits = json.loads(stages["machine's limits"]["tail"].strip().splitlines()[-1])
    return {
        "machine": measure.machine(),
        "checkpoint": {
            "folder": checkpoint.name,
            "bytes": sum(path.stat().st_size for path in weights),
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "vocab": config.vocab_size,
        },
        "options": {"context": context, "chunk": chunk, "peer_chunk": peer_chunk, "kv_cache": kv_cache},
        "stages": stages,
        "files": files,
        "where_s": where,
        "limits": limits,
    }


def facts(path: Path, config: ModelConfig, context: int, item_bytes: int) -> dict[str, int]:
    """Sizes of a `.pte`, in bytes, read from the file itself."""
    from export.models.registry import family_of, rows_shape
    from export.ptefile.reader import open_pte
    from export.quantization.recipe import Recipe

    recipe = Recipe()
    quantized = 0
    for rows in family_of(config).layout(config).values():
        if len(size := rows_shape(config, rows)) == 2:
            quantized += sum(recipe.storage(rows.name, size[1]).nbytes(size[0]).values())
    pte = open_pte(path)
    forward = next(plan for plan in pte.program.execution_plan if plan.name == "forward")
    planned = sum(int(size) for size in forward.non_const_buffer_sizes)
    kv_cache = 2 * config.num_hidden_layers * context * config.kv_dim * item_bytes
    return {
        "bytes": pte.size,
        "quantized_weights_bytes": quantized,
        # Norms, rope tables, graphs and padding; and whatever should have been quantized but was not.
        "other_bytes": pte.size - quantized,
        "kv_cache_bytes": kv_cache,
        "planned_activation_bytes": planned - kv_cache,
        "delegates": len(forward.delegates),
    }


def _place(flags: argparse.Namespace, stack: ExitStack) -> Path:
    if flags.work is not None:
        flags.work.mkdir(parents=True, exist_ok=True)
        return flags.work.resolve()
    # Not /tmp, which is memory on many systems.
    parent = next((path for path in (Path("/var/tmp"),) if path.is_dir()), None)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketphi-", dir=parent)))


def _checkpoint(flags: argparse.Namespace, work: Path, console: Console) -> Path:
    """The folder given, or a synthesized one in `work`, kept for the next run there."""
    sizes = {name: getattr(flags, name) for name in SIZES if getattr(flags, name) is not None}
    if flags.checkpoint is not None:
        if sizes:
            flag = next(iter(sizes)).replace("_", "-")
            raise BadInput(f"--checkpoint has its own sizes, --{flag} is for random weights")
        if not (flags.checkpoint / "config.json").is_file():
            raise BadInput(f"{flags.checkpoint} is not a folder with a config.json")
        return flags.checkpoint.resolve()
    words = [f"{name}{size}" for name, size in sizes.items()]
    folder = work / "-".join(["phi4-mini", *words])
    if not folder.exists():
        options = [word for name, size in sizes.items() for word in (f"--{name.replace('_', '-')}", str(size))]
        done = measure.run((sys.executable, "-m", "checkpoints.synthesize", "--out", str(folder), *options))
        if done.failure:
            raise BadInput(f"no checkpoint could be synthesized: {done.tail[-400:]}")
        console.print(f"random weights: {done.wall_s:.1f} s", highlight=False)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="default: random weights of Phi-4-mini's sizes, or smaller with "
        "--layers, --hidden, --intermediate, --heads, --kv-heads, --vocab",
    )
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=argparse.SUPPRESS)
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="folder on disk to work in; files and benchmark.json stay there"
    )
    parser.add_argument("--context", type=int, default=4096, help="tokens (default: %(default)s)")
    parser.add_argument("--prefill-chunk", type=int, default=256, help="tokens fed at once (default: %(default)s)")
    parser.add_argument("--peer-chunk", type=int, help="upstream's max_seq_length (default: as --prefill-chunk)")
    parser.add_argument("--kv-cache", choices=tuple(CACHE_ITEM_BYTES), default="bf16", help="ours (default: bf16)")
    parser.add_argument("--limit-gib", type=float, default=4, help="for our export (default: %(default)s)")
    parser.add_argument(
        "--verify-limit-gib", type=float, default=6, help="for our verification (default: %(default)s)"
    )
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="run upstream's path too")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    flags = parser.parse_args(argv)
    quiet(verbose=False)
    console = Console(stderr=True)
    with ExitStack() as stack:
        work = _place(flags, stack)
        checkpoint = _checkpoint(flags, work, console)
        _check_disk(checkpoint, work, flags.peer)
        if flags.peer:
            upstream.check_place(work)
        report = benchmark(
            checkpoint,
            work,
            context=flags.context,
            chunk=flags.prefill_chunk,
            peer_chunk=flags.peer_chunk or flags.prefill_chunk,
            kv_cache=flags.kv_cache,
            limit_gib=flags.limit_gib,
            verify_limit_gib=flags.verify_limit_gib,
            peer=flags.peer,
            console=console,
        )
        (work / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
    if flags.json:
        print(json.dumps(report, indent=2))
    else:
        print_export(report, Console())
    return 1 if any(stage["failure"] for stage in report["stages"].values()) else 0


def _check_disk(checkpoint: Path, work: Path, peer: bool) -> None:
    """bfloat16 untied is up to 1.2 of the checkpoint, quantized in bytes 0.65, a `.pte` 0.4."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    needed, free = int(size * (2.7 if peer else 0.9)), shutil.disk_usage(work).free
    if free < needed:
        raise BadInput(f"{work} has {free / 1e9:.1f} GB free, the benchmark needs {needed / 1e9:.1f} GB there")


if __name__ == "__main__":
    run(main)
