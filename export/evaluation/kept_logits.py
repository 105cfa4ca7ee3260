"""The reference's logits of some windows, kept until every model was compared with them: in memory, or on the disk.

Knows tensors and files; knows nothing of models.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from checkpoints.cache import cache_folder
from checkpoints.files import tensor_bytes

IN_MEMORY = 1 << 28  # bytes that stay in memory; more goes to the disk, all of it
ON_DISK = 1 << 32  # bytes at most, and half of what the disk has left


class KeptLogits:
    """float32 [tokens, V] of windows, in the order they were appended. Gone when it is closed, whatever happens.

    Memory: IN_MEMORY at most, and the window that is read or written.
    """

    def __init__(self) -> None:
        # In the user's cache, since /tmp is memory on many systems.
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(cache_folder()))  # noqa: SIM115  closed by __exit__
        self._places: list[tuple[int, torch.Size]] = []

    def __enter__(self) -> KeptLogits:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, logits: Tensor) -> None:
        self._places.append((self._file.seek(0, 2) or self._file.tell(), logits.shape))
        self._file.write(tensor_bytes(logits))

    def __getitem__(self, number: int) -> Tensor:
        at, shape = self._places[number]
        self._file.seek(at)
        data = bytearray(self._file.read(4 * shape.numel()))
        return torch.from_numpy(np.frombuffer(data, np.float32)).reshape(shape)


def room_for_logits() -> int:
    """Bytes that may be kept at once."""
    return min(ON_DISK, shutil.disk_usage(cache_folder()).free // 2)


def rounds(tokens: Sequence[int], row_bytes: int, room: int) -> list[range]:
    """Windows of so many tokens dealt into rounds whose logits fit `room` bytes; a window that does not is alone."""
    starts, used = [0], 0
    for number, count in enumerate(tokens):
        used += count * row_bytes
        if used > room and number > starts[-1]:
            starts.append(number)
            used = count * row_bytes
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True)]
