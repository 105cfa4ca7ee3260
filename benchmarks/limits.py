"""What no export can beat on this machine: reading a checkpoint, quantizing it, writing the file's bytes.

    python -m benchmarks.limits --checkpoint DIR --bytes N --folder DIR

Each is measured alone, in one thread, and knows nothing of graphs. Quantizing is torchao with the product's
pieces of rows and nothing else; the checkpoint is in the page cache then, where that is large enough.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import drop_from_cache
from checkpoints.errors import BadInput, run

BLOCK_BYTES = 8 << 20


def read(folder: Path) -> dict[str, Any]:
    """Read all weights once, from disk where the cache can be dropped."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{folder} has no .safetensors files")
    cold = all([drop_from_cache(file) for file in files])
    block = memoryview(bytearray(BLOCK_BYTES))
    total = 0
    start = time.monotonic()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                total += count
    return {"seconds": time.monotonic() - start, "bytes": total, "cold": cold}


def quantize(folder: Path) -> dict[str, Any]:
    """Quantize every weight of the untied model by the default recipe, keeping nothing."""
    import torch

    from checkpoints.source import resolve
    from export.models.registry import family_of
    from export.quantization.recipe import Recipe
    from export.quantization.saved_reader import open_quantized

    torch.set_num_threads(1)  # as the exporter's process of weights: the other core has the graph
    source = open_quantized(resolve(str(folder)), Recipe())
    elements = 0
    start = time.monotonic()
    for rows in family_of(source.config).layout(source.config).values():
        for piece in source.rows(rows.name, rows.start, rows.stop):
            elements += getattr(piece, "levels", piece).numel()
    return {"seconds": time.monotonic() - start, "elements": elements}


def write(folder: Path, size: int) -> dict[str, Any]:
    """Write `size` bytes and force them to disk."""
    block = os.urandom(BLOCK_BYTES)  # not zeros, which a file system may not store
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.monotonic()
        for at in range(0, size, BLOCK_BYTES):
            file.write(block[: size - at])
        file.flush()
        os.fsync(file.fileno())
        return {"seconds": time.monotonic() - start, "bytes": size}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bytes", type=int, required=True, metavar="N", help="size of the file to write")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="where to write it")
    flags = parser.parse_args(argv)
    found = {"read": read(flags.checkpoint), "quantize": quantize(flags.checkpoint)}
    print(json.dumps(found | {"write": write(flags.folder, flags.bytes)}))
    return 0


if __name__ == "__main__":
    run(main)
