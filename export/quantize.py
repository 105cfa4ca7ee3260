"""Quantizes a checkpoint with torchao, a few rows at a time.

Groups lie along a row, so the rows of a weight are independent: quantizing them in pieces gives bit for bit what
torchao gives for the whole model loaded in float32, and a piece that fits the processor's cache is several times
faster than a whole tensor. Knows Hugging Face tensor names; knows nothing of graphs or files to be written.
`python -m export.quantize --checkpoint C --out DIR` keeps the result, through `export.keep`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
    quantize_,
)

from checkpoints.config import ModelConfig
from checkpoints.errors import BadInput, run
from checkpoints.source import DEFAULT, EMBEDDED, resolve
from checkpoints.weights import open_checkpoint
from export.progress import quiet
from export.untie import EMBEDDING, HEAD, Untied

GROUP_SIZES = (32, 64, 128)
INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009  torch 2.13 has it, its type stubs do not
# 64 rows of 3072 float32 are 768 KiB: with torchao's temporaries about a second-level cache. Measured on two cores,
# one thread: 64 rows 0.18 s, 512 rows 0.49 s, all 8192 rows 1.84 s for the same weight.
CHUNK_ELEMENTS = 64 * 3072


@dataclass(frozen=True)
class Recipe:
    """What each kind of weight becomes. Default: the published 8da4w, int8 dynamic activations and int4 weights."""

    quantized: bool = True  # False keeps float32 everywhere, as a reference
    group_size: int = 32  # columns that share an int4 scale
    embedding_bits: int = 8  # 8: one float32 scale a row; 4: one a group
    head_bits: int = 4  # 4: in groups like every linear; 8: one scale a row

    def __str__(self) -> str:
        if not self.quantized:
            return "float32"
        return f"8da4w g{self.group_size}, embedding int{self.embedding_bits}, lm_head int{self.head_bits}"

    def torchao_config(self, name: str) -> AOBaseConfig | None:
        """torchao's configuration for the weight with this Hugging Face name; None keeps it in float32."""
        if not self.quantized or "norm" in name:
            return None
        if name == EMBEDDING:
            if self.embedding_bits == 8:
                return IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
            return IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(self.group_size))
        if name == HEAD and self.head_bits == 8:
            # XNNPACK has no int8 weights in groups (1.5.1), and wants one float32 scale a row
            return Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=INT4,
            weight_granularity=PerGroup(self.group_size),
            weight_scale_dtype=torch.bfloat16,
        )

    def storage(self, name: str, columns: int) -> tuple[int, int, int]:
        """Bits of an element, columns that share a scale, bytes of a scale, as stored in a `.pte`."""
        config = self.torchao_config(name)
        if config is None:
            return 32, columns, 0
        if name == EMBEDDING:
            return (8, columns, 4) if self.embedding_bits == 8 else (4, self.group_size, 4)
        return (8, columns, 4) if name == HEAD and self.head_bits == 8 else (4, self.group_size, 2)

    def check(self, config: ModelConfig) -> None:
        """Raise BadInput where a group size does not divide the rows it would be applied to."""
        if not self.quantized:
            return
        if self.group_size not in GROUP_SIZES:
            raise BadInput(f"group size {self.group_size} is none of {', '.join(map(str, GROUP_SIZES))}")
        for key, columns in (
            ("hidden_size", config.hidden_size),
            ("num_attention_heads * head_dim", config.q_dim),
            ("intermediate_size", config.intermediate_size),
        ):
            if columns % self.group_size:
                raise BadInput(
                    f"{config.path}: {key} {columns} cannot be cut into groups of {self.group_size}, "
                    f"{columns % self.group_size} columns would be left over"
                )


class Quantized(Protocol):
    """What later stages read: an untied model whose weights arrive quantized, a few rows at a time."""

    config: ModelConfig
    recipe: Recipe

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows start … stop of a weight, in order: torchao tensors, or plain float32 where nothing is quantized."""
        ...


def quantize_rows(rows: Tensor, config: AOBaseConfig) -> Tensor:
    """Quantize a piece of a weight [rows, columns], any float dtype, to a torchao tensor of the same shape."""
    holder: nn.Module
    if isinstance(config, IntxWeightOnlyConfig):
        holder = nn.Embedding(rows.shape[0], rows.shape[1], device="meta")
    else:
        holder = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
    holder.weight = nn.Parameter(rows.to(torch.float32), requires_grad=False)
    quantize_(holder, config, filter_fn=lambda module, _: module is holder)
    return holder.weight.detach()


class Quantizing:
    """Quantizes an untied checkpoint as it is read. Memory: one piece of CHUNK_ELEMENTS and its temporaries."""

    def __init__(self, untied: Untied, recipe: Recipe) -> None:
        recipe.check(untied.config)
        self.untied, self.recipe, self.config = untied, recipe, untied.config

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        weight = self.untied.tensor(name)
        config = self.recipe.torchao_config(name)
        columns = weight.shape[1] if weight.dim() == 2 else 1
        step = max(1, CHUNK_ELEMENTS // columns)
        for at in range(start, stop, step):
            piece = weight[at : min(at + step, stop)]
            result = piece.to(torch.float32) if config is None else quantize_rows(piece, config)
            # A NaN or Inf weight makes its group's scale NaN or Inf, so the scales tell without another pass.
            if not torch.isfinite(getattr(result, "scale", result)).all():
                row = at + int((~torch.isfinite(piece.float())).flatten().nonzero()[0]) // columns
                raise BadInput(f"{self.untied.checkpoint.folder}: {name} has a NaN or Inf in row {row}")
            yield result
        self.untied.release(name)


def quantize(
    checkpoint: str | None = None,
    *,
    out: str | os.PathLike[str],
    revision: str | None = None,
    group_size: int = 32,
    embedding_bits: int = 8,
    head_bits: int = 4,
) -> Path:
    """Write a checkpoint (hub id, folder or "phi4-tiny") untied and quantized at `out`; whole or not at all.

    The folder is one of transformers with torchao, see `export.keep`. Raises BadInput as that and Recipe.check do.
    """
    from export.folders import bar, check_folder
    from export.keep import plan, save_quantized, size

    source, out = resolve(checkpoint, revision), Path(out)
    check_folder(out)
    recipe = Recipe(True, group_size, embedding_bits, head_bits)
    quantizing = Quantizing(Untied(open_checkpoint(source.folder)), recipe)
    with bar("quantize", size(plan(quantizing))) as progress:
        save_quantized(quantizing, out, progress)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m export.quantize", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", help=f"hub id, folder, or {EMBEDDED} (default: {DEFAULT})")
    parser.add_argument("--revision", help="commit, branch or tag of a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--group-size", type=int, choices=GROUP_SIZES, default=32, help="columns to a scale")
    parser.add_argument("--embedding-bits", type=int, choices=(8, 4), default=8)
    parser.add_argument("--head-bits", type=int, choices=(4, 8), default=4, help="bits of lm_head")
    flags = vars(parser.parse_args(argv))
    quiet(verbose=False)
    print(quantize(**flags))


if __name__ == "__main__":
    run(main)
