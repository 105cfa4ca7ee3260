"""Finds tensors in files of torch.save without running what a pickle says, and writes such files piece by piece.

A state dict is unpickled by torch's weights_only reader with two classes of torchao allowed and nothing else,
onto the meta device: no data is read, and each tensor's place in the file comes out. Knows the zip layout of
torch.save since 1.6; knows nothing of models.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchao.quantization import IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8TensorActivationQuantization,
)

from checkpoints.errors import BadInput

ALLOWED: list[Any] = [IntxUnpackedToInt8Tensor, IntxUnpackedToInt8TensorActivationQuantization]


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Name -> meta tensor (plain or IntxUnpackedToInt8Tensor of meta tensors); `offset` says where its bytes are.

    Raises BadInput when the file is not a state dict of such tensors alone; nothing else in it is made or
    called.
    """
    places = _records(file)
    try:
        with _only(ALLOWED):
            state = torch.load(file, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as problem:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(problem))
        what = f"names {found[1]}" if found else "does something else"
        raise BadInput(
            f"{file} {what}, a state dict holds tensors and IntxUnpackedToInt8Tensor alone: it was not opened"
        ) from None
    except Exception as problem:  # a foreign pickle can make its reader fail in any way
        raise BadInput(f"{file} is not a state dict: {type(problem).__name__}: {str(problem)[:120]}") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise BadInput(f"{file} holds a {type(state).__name__}, not a state dict")
    for name, value in state.items():
        parts = [value]
        if isinstance(value, IntxUnpackedToInt8Tensor):
            parts = [getattr(value, part, None) for part in ("qdata", "scale", "zero_point")]
        for part in parts:
            if type(part) not in (Tensor, torch.nn.Parameter):
                raise BadInput(f"{file}: {name} is or holds a {type(part).__name__}, not a tensor")
            if part.device.type != "meta" or not part.is_contiguous():
                raise BadInput(f"{file}: {name} is not stored as whole contiguous rows")
            storage = part.untyped_storage()
            end = part.storage_offset() * part.element_size() + part.nbytes
            held = places.get(getattr(storage, "_checkpoint_offset", -1))
            if held != storage.nbytes() or end > held:
                raise BadInput(f"{file}: the {storage.nbytes()} bytes of {name} are not where torch.save puts them")
    return state


def offset(tensor: Tensor) -> int:
    """Byte in its file at which a tensor of `read_state_dict` begins."""
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset")  # noqa: B009  unknown to torch's types
    return int(start + tensor.storage_offset() * tensor.element_size())


@contextmanager
def _only(classes: list[Any]) -> Iterator[None]:
    """Allow these classes and none that torchao, torch.distributed and others have allowed when imported."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals(classes)
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _records(file: Path) -> dict[int, int]:
    """First byte -> size of every record of the archive, for comparison with where torch says they are."""
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as handle:
            places = {}
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise BadInput(f"{file} is a compressed archive, torch.save does not write such")
                handle.seek(record.header_offset + 26)
                name, extra = struct.unpack("<HH", handle.read(4))
                places[record.header_offset + 30 + name + extra] = record.file_size
            return places
    except (zipfile.BadZipFile, struct.error, ValueError):
        raise BadInput(f"{file} is cut short or was not written by torch.save of torch 1.6 or later") from None
    except OSError as problem:
        raise BadInput(f"{file} cannot be read: {problem.strerror}") from None


def write_state_dict(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write a state dict of these shapes and dtypes with its data left out; name -> byte where it belongs.

    `tensors` may be meta tensors; a tensor that occurs twice is stored once. The checksums of the archive are
    those of empty data: torch.load does not look at them, unzip would complain.
    """
    with FakeTensorMode():
        once = {id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors.values()}
    fakes = {name: once[id(tensor)] for name, tensor in tensors.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(fakes, path)
    return {name: offset(tensor) for name, tensor in read_state_dict(path).items()}
