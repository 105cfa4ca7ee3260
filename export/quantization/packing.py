"""The bytes a `.pte` holds for each weight, in the order XNNPACK and the embedding kernel read them.

int4 linear: two columns a byte, the even one in the low nibble, offset by 8; bfloat16 scales [rows, groups]
(XNNPACK's qbint4). int8 linear: as is, float32 scales [rows] (qcint8). int8 embedding: as is, float32 scales [rows].
int4 embedding: two columns a byte, the even one in the *high* nibble, offset by 8; float32 scales [rows, groups].
float32: as is. Everything is by rows, so the bytes of a weight are the bytes of its rows one after another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torchao.quantization import IntxUnpackedToInt8Tensor

from checkpoints.files import tensor_bytes
from checkpoints.phi3 import Role
from export.quantization.recipe import INT4, Recipe


@dataclass(frozen=True)
class Storage:
    """How one weight lies in the file; a norm is a single row."""

    rows: int
    columns: int
    bits: int  # of an element: 32 (float32), 8 (int8) or 4 (two a byte, offset by 8)
    groups: int  # scales a row; 0 for float32
    scale_dtype: torch.dtype
    embedding: bool  # decides which nibble of a byte comes first


@dataclass(frozen=True)
class Part:
    """One run of bytes: a tensor of uint8, int8, bfloat16 or float32 named after its weight plus `suffix`."""

    suffix: str  # "weight" or "scale"
    data: Tensor

    def bytes(self) -> memoryview:
        return tensor_bytes(self.data)


def packed_parts(rows: Tensor) -> list[Part]:
    """What the file holds for some rows of a weight, from their torchao (or plain float32) form."""
    if not isinstance(rows, IntxUnpackedToInt8Tensor):
        return [Part("weight", rows)]
    if rows.zero_point.any():
        raise ValueError("only symmetric quantization is packed: a zero point is not 0")
    linear = rows.activation_quantization is not None
    data, scale = rows.qdata, rows.scale
    if rows.target_dtype == INT4:
        nibbles = data.view(torch.uint8) + 8
        even, odd = nibbles[:, ::2], nibbles[:, 1::2]
        data = even | (odd << 4) if linear else odd | (even << 4)
        scale = scale.to(torch.bfloat16 if linear else torch.float32)
    else:
        scale = scale.to(torch.float32).flatten()
    return [Part("weight", data), Part("scale", scale)]


def unpack(weight: Tensor, scale: Tensor | None, storage: Storage) -> Tensor:
    """Undo `packed_parts` for some rows: float32 [rows, columns].

    `weight` is uint8 [rows, columns / 2] for 4 bits, int8 [rows, columns] for 8, or float32, which comes back as it
    is; `scale` is float32 [rows, groups].
    """
    if scale is None:
        return weight
    if storage.bits == 4:
        values = torch.empty(*weight.shape, 2)
        even, odd = (weight >> 4, weight & 15) if storage.embedding else (weight & 15, weight >> 4)
        values[..., 0], values[..., 1] = even, odd
        values -= 8
    else:
        values = weight.to(torch.float32)
    return values.view(*scale.shape, -1).mul_(scale.unsqueeze(-1)).view(len(weight), -1)


def sha256_key(part: Part) -> str:
    """The name XNNPACK's lowering gives these bytes in 1.5.1: their hash, scales with a prefix."""
    digest = hashlib.sha256(part.bytes()).hexdigest()
    return digest if part.suffix == "weight" else f"scale_{digest}"


def packed_sizes(shape: tuple[int, ...], role: Role, recipe: Recipe) -> dict[str, int]:
    """Bytes of each part of a weight [rows, columns] or [columns], by suffix, from the recipe alone."""
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    bits, group, scale_bytes = recipe.storage(role, columns)
    sizes = {"weight": rows * columns * bits // 8}
    return sizes if bits == 32 else sizes | {"scale": rows * (columns // group) * scale_bytes}
