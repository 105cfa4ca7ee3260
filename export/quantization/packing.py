"""The bytes a `.pte` holds for each weight, in the order XNNPACK and the embedding kernel read them, and back.

int4 linear: two columns a byte, the even one in the low nibble, offset by 8; bfloat16 scales [rows, groups]
(XNNPACK's qbint4). int8 linear: as is, float32 scales [rows] (qcint8). int8 embedding: as is, float32 scales [rows].
int4 embedding: two columns a byte, the even one in the *high* nibble, offset by 8; float32 scales [rows, groups].
float32: as is. Everything is by rows, so the bytes of a weight are the bytes of its rows one after another.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from export.quantization.recipe import Storage
from export.quantization.rounding import Rounded

DIGEST = 32  # hex digits of a weight's sha256 in the names of its parts


def data_key(name: str, digest: str) -> str:
    """What a part is called in a file: its name, and a digest of the weight with its scales and their number.

    XNNPACK's weight cache (executorch 1.5.1, XNNWeightsCache) takes packed weights of one name and geometry for the
    same, whichever file they are of. It looks at the name of the weight alone, and its geometry does not tell [a, b]
    from [b, a] or groups of 32 from groups of 64. So a weight's name tells all of that.
    """
    return f"{name}.{digest[:DIGEST]}"


def readable_name(key: str) -> str:
    """The name in a key; a key that has none, as upstream's, is itself."""
    match = re.fullmatch(rf"(.+)\.[0-9a-f]{{{DIGEST}}}", key)
    return match[1] if match else key


def pack(rows: Rounded | Tensor) -> dict[str, Tensor]:
    """What the file holds for some rows: "weight" and, where they are quantized, "scale"."""
    if isinstance(rows, Tensor):
        return {"weight": rows}
    data = rows.levels
    if rows.storage.bits == 4:
        pairs = data.view(torch.int16)  # the even column is the low byte
        even, odd = (4, 8) if rows.storage.embedding else (0, 4)  # shifts, left and right
        packed = ((pairs & 15) << even) | ((pairs >> odd) & (0xF0 >> even))
        data = (packed ^ 0x88).to(torch.uint8)  # two's complement to an offset of 8
    return {"weight": data, "scale": rows.scales}


def unpack(weight: Tensor, scale: Tensor | None, storage: Storage) -> Tensor:
    """Undo `pack` for some rows: float32 [rows, columns].

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
