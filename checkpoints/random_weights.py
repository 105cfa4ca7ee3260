"""Random weights with the scales that trained ones have, written in pieces into safetensors files.

Modelled: a standard deviation per kind of matrix, rows and columns of unequal scale, a few columns six times larger
(the outlier channels that make 4-bit rounding hard), norm weights around 1. The numbers are plausible, not measured
from a published checkpoint.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from checkpoints.files import write_json
from checkpoints.safetensors_io import make_header

Shapes = Mapping[str, tuple[int, ...]]  # of all weights, by name

STD = {"embed_tokens": 0.02, "qkv_proj": 0.025, "o_proj": 0.018, "gate_up_proj": 0.025, "down_proj": 0.018}
# Ending of a name -> mean, spread, least: what is no matrix and no norm's weight.
VECTORS = {
    ".bias": (0.0, 0.02, -math.inf),
    ".b1": (0.0, 0.02, -math.inf),
    ".b2": (0.0, 0.02, -math.inf),
    ".global_mean": (9.0, 1.0, 0.0),  # of log-mel energies, which lie between 0 and 20
    ".global_invstd": (0.25, 0.03, 0.1),
    "_img_feature_extensor": (0.0, 0.02, -math.inf),
}
MEDIA_GAIN, LORA_A, LORA_GAIN = 0.8, 0.02, 0.1
ROW_SPREAD, COLUMN_SPREAD, NORM_SPREAD = 0.15, 0.1, 0.1  # of the logarithm, for norms of the value
OUTLIERS, OUTLIER_SCALE, FEW = 200, 6.0, 32  # one column in 200 is 6 times larger, of 32 or more
BLOCK, CHUNK = 1 << 26, 1 << 22  # elements


def shards(names: Mapping[str, str], shapes: Shapes, limit: int) -> dict[str, dict[str, str]]:
    """File -> name in it -> name of a weight, for weights in order in files of at most `limit` bytes of data.

    `names` are the weights by their names in the files.
    """
    parts: list[dict[str, str]] = [{}]
    filled = 0
    for stored, name in names.items():
        size = 2 * math.prod(shapes[name])
        if parts[-1] and filled + size > limit:
            parts.append({})
            filled = 0
        parts[-1][stored] = name
        filled += size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, start=1)}


def write_index(folder: Path, files: Mapping[str, Mapping[str, str]], shapes: Shapes) -> None:
    """The index that the files of a folder need if there are several; files in folders within it are not its own."""
    own = {file: names for file, names in files.items() if "/" not in file}
    if len(own) > 1:
        total = sum(2 * math.prod(shapes[name]) for names in own.values() for name in names.values())
        weight_map = {stored: file for file, names in own.items() for stored in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def write_weights(folder: Path, files: Mapping[str, Mapping[str, str]], shapes: Shapes, seed: int) -> None:
    """Write bfloat16 weights into files as `shards` arranges them; each depends on those before it and on `seed`."""
    total = sum(2 * math.prod(shapes[name]) for part in files.values() for name in part.values())
    generator = torch.Generator().manual_seed(seed)
    largest = max(map(math.prod, shapes.values()))
    block = torch.empty(min(BLOCK, 4 * largest), dtype=torch.bfloat16)
    for start in range(0, block.numel(), CHUNK):
        part = block[start : start + CHUNK]
        part.copy_(torch.randn(part.shape, generator=generator))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("random weights", total=total)
        for file, names in files.items():
            with (folder / file).open("wb") as handle:
                meta = {
                    stored: torch.empty(shapes[name], dtype=torch.bfloat16, device="meta")
                    for stored, name in names.items()
                }
                handle.write(make_header(meta, {"format": "pt"})[0])
                for name in names.values():
                    for chunk in _random(name, shapes[name], block, generator):
                        handle.write(chunk.view(torch.int16).numpy().data)
                        progress.advance(task, 2 * chunk.numel())


def _random(
    name: str, shape: tuple[int, ...], block: torch.Tensor, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield one weight in pieces of whole rows, bfloat16; more than two dimensions count as columns.

    Drawing 3.8 billion normal numbers takes minutes: a matrix is cut from `block`, normal numbers drawn once,
    and scaled by row and column. Pieces start at different remainders modulo the row length, so that no two
    rows of a matrix are the same stretch of the block.
    """
    vector = next((value for ending, value in VECTORS.items() if name.endswith(ending)), None)
    if vector or len(shape) == 1:
        mean, spread, least = vector or (1, NORM_SPREAD, 0.1)
        yield (mean + spread * torch.randn(shape, generator=generator)).clamp_(min=least).bfloat16()
        return
    rows, columns = shape[0], math.prod(shape[1:])
    std = _std(name, columns)
    by_row = (std * torch.exp(ROW_SPREAD * torch.randn(rows, 1, generator=generator))).bfloat16()
    by_column = torch.exp(COLUMN_SPREAD * torch.randn(columns, generator=generator))
    if columns >= FEW:
        by_column[torch.randperm(columns, generator=generator)[: math.ceil(columns / OUTLIERS)]] *= OUTLIER_SCALE
    by_column = by_column.bfloat16()
    step = min(rows, max(1, CHUNK // columns))
    span = (block.numel() - step * columns) // columns * columns  # a multiple of columns keeps the remainders
    offset = int(torch.randint(span, (1,), generator=generator))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        piece = block[offset : offset + count * columns].view(count, columns) * by_column
        yield piece.mul_(by_row[start : start + count])
        offset = (offset + step * columns + 1) % span


def _std(name: str, columns: int) -> float:
    """Of a matrix's entries before rows and columns are scaled.

    What encoders compute keeps its size from layer to layer. An adapter of the published scale, 2, changes a weight
    by a tenth of its size, whatever its rank, which is the number of columns of lora_B.
    """
    if ".lora_A." in name:
        return LORA_A
    if ".lora_B." in name:
        return LORA_GAIN * STD["qkv_proj"] / (2 * LORA_A * math.sqrt(columns))
    if "embed_tokens_extend" in name and not name.endswith(("position_embedding.weight", "bias_values.weight")):
        return MEDIA_GAIN / math.sqrt(columns)
    return next((value for key, value in STD.items() if key in name), STD["embed_tokens"])
