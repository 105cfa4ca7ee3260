"""Maps a folder of safetensors files and checks, before reading a weight, that they hold the model declared.

One tensor at a time: `tensor` maps that tensor's bytes alone, and they leave memory with its last reference
or at `release`, so a pass over all weights stays within the largest tensor. Headers are parsed by the layout
in the safetensors README (8-byte little-endian length, JSON, packed data); no pickle is ever opened. Knows
nothing of quantization or of what the weights are for.
"""

import hashlib
import json
import math
import mmap
import os
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from checkpoints.config import ModelConfig, read_config, read_object
from checkpoints.errors import BadInput

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MODEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit
LAYER = re.compile(r"model\.layers\.([0-9]{1,5})\.")
# Buffers that files written by transformers before 4.40 still carry; they are recomputed, never read.
LEGACY = re.compile(r"model\.layers\.[0-9]{1,5}\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class _Entry:
    file: Path
    begin: int  # byte offset in the file
    end: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """The weights of one folder, open for reading; use open_checkpoint to get one."""

    def __init__(self, folder: Path, config: ModelConfig, files: list[Path], entries: dict[str, _Entry]) -> None:
        self.folder = folder
        self.config = config
        self.files = files
        self._entries = entries
        self._maps: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()

    def names(self) -> list[str]:
        """Names of all weights: in model order, or in file order when opened with check=False."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def nbytes(self, name: str) -> int:
        entry = self._entry(name)
        return entry.end - entry.begin

    def tensor(self, name: str) -> torch.Tensor:
        """The weight as a CPU tensor of its own shape and dtype, mapped from the file and not copied.

        Pages become resident as they are read and leave with the last view, so slices of a large weight can
        be read with `release` between them. Writing to the tensor never reaches the file.
        """
        entry = self._entry(name)
        size, itemsize = entry.end - entry.begin, entry.dtype.itemsize
        if size == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        start = entry.begin - entry.begin % mmap.ALLOCATIONGRANULARITY
        pages = self._maps.get(name)
        if pages is None:
            with entry.file.open("rb") as file:
                # Private and writable: torch wants to be able to write, the user's file must stay as it is.
                # Per tensor: Linux may refuse such a map of a whole file that is larger than memory.
                pages = mmap.mmap(file.fileno(), entry.end - start, access=mmap.ACCESS_COPY, offset=start)
            self._maps[name] = pages
        if entry.begin % itemsize:  # files of other writers may be unaligned, which vector loads do not bear
            data = bytearray(memoryview(pages)[entry.begin - start :])
            return torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)
        flat = torch.frombuffer(pages, dtype=entry.dtype, count=size // itemsize, offset=entry.begin - start)
        return flat.reshape(entry.shape)

    def prefetch(self, name: str) -> None:
        """Ask the system to read the weight's bytes in the background; without effect where it cannot."""
        entry = self._entry(name)
        if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
            with entry.file.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), entry.begin, entry.end - entry.begin, os.POSIX_FADV_WILLNEED)

    def release(self, name: str) -> None:
        """Drop the weight's pages from this process; views stay valid and read the file again when used."""
        self._entry(name)
        pages = self._maps.get(name)
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            pages.madvise(mmap.MADV_DONTNEED)

    def file_hashes(self) -> dict[str, str]:
        """File name -> sha256 in hex, of every file of weights; reads them whole."""
        return {file.name: sha256(file) for file in self.files}

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise KeyError(f"{self.folder} has no tensor {name}")
        return self._entries[name]


def open_checkpoint(folder: Path, *, check: bool = True) -> Checkpoint:
    """Map model.safetensors, or the shards model.safetensors.index.json names, and check them.

    Reads headers only, except that an lm_head.weight beside tied embeddings is compared with them. Raises
    BadInput for a missing, damaged or cut file, and, unless `check` is False, for names, shapes or dtypes
    that are not those of the model in config.json. check=False leaves names as found, for quantized ones.
    """
    config = read_config(folder)
    files, index = _find_files(folder)
    entries: dict[str, _Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in entries:
                raise BadInput(f"{_show(name)} is both in {entries[name].file} and in {file.name}")
            entries[name] = entry
    for name, file in index.items():
        if name not in entries or entries[name].file != file:
            raise BadInput(f"{folder / INDEX} says {_show(name)} is in {file.name}, which does not hold it")
    if not check:
        return Checkpoint(folder, config, files, entries)

    entries = {name: entry for name, entry in entries.items() if not LEGACY.fullmatch(name)}
    tied_head = entries.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    _check_names(folder, config, entries)
    entries = {name: entries[name] for name in config.expected_tensors()}
    if tied_head and not _same_bytes(
        Checkpoint(folder, config, files, entries | {"lm_head.weight": tied_head}),
        "lm_head.weight",
        "model.embed_tokens.weight",
    ):
        raise BadInput(
            f"{tied_head.file}: lm_head.weight differs from model.embed_tokens.weight, "
            "but config.json says tie_word_embeddings is true"
        )
    return Checkpoint(folder, config, files, entries)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in small pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def _find_files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files of weights in name order, and the file the index (empty if none) names for each tensor."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    if not (folder / INDEX).is_file():
        if list(folder.glob("*.bin")):
            raise BadInput(f"{folder} has its weights in pickle files (*.bin), which are never opened")
        raise BadInput(f"{folder} has neither {SINGLE} nor {INDEX}")
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{folder / INDEX}: weight_map must be an object that is not empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard, re.ASCII):
            raise BadInput(
                f"{folder / INDEX}: weight_map has {_show(name)} in {_show(shard)}, "
                "which is not the name of a .safetensors file in this folder"
            )
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise BadInput(f"{folder / shard} is missing, {INDEX} names {len(shards)} files of weights")
    return [folder / shard for shard in shards], {name: folder / shard for name, shard in weight_map.items()}


def _read_header(file: Path) -> dict[str, _Entry]:
    """Parse and check one safetensors header: the data must be covered exactly once, to the last byte."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            text = handle.read(length) if length <= min(size - 8, MAX_HEADER) else b""
    except OSError as problem:
        raise BadInput(f"{file} cannot be read: {problem.strerror}") from None
    if size < 8 or length > size - 8:
        raise BadInput(f"{file} is cut short: its header needs {8 + length} bytes, the file has {size}")
    if length > MAX_HEADER:
        raise BadInput(f"{file}: a header of {length} bytes is over the limit of {MAX_HEADER}")
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"{file}: the header is not JSON: {_show(str(problem))}") from None
    if not isinstance(header, dict):
        raise BadInput(f"{file}: the header is a JSON {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    entries = [(name, _read_entry(file, name, fields, 8 + length)) for name, fields in header.items()]
    entries.sort(key=lambda item: (item[1].begin, item[1].end))
    end = 8 + length
    for name, entry in entries:
        if entry.begin != end:
            fault = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
            raise BadInput(f"{file}: {_show(name)} {fault}: it starts at byte {entry.begin}, not {end}")
        end = entry.end
    if end > size:
        raise BadInput(f"{file} is cut short: its tensors end at byte {end}, the file has {size}")
    if end < size:
        raise BadInput(f"{file} has bytes after its tensors: they end at byte {end}, the file has {size}")
    return dict(entries)


def _read_entry(file: Path, name: str, fields: Any, start: int) -> _Entry:
    place = f"{file}: {_show(name)}"
    if not isinstance(fields, dict):
        raise BadInput(f"{place} must be an object, it is {_show(fields)}")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadInput(f"{place} has the unknown dtype {_show(dtype)}")
    if not _naturals(shape):
        raise BadInput(f"{place} has the shape {_show(shape)}, not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise BadInput(f"{place} has the data_offsets {_show(offsets)}, not two byte offsets")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise BadInput(f"{place} is {dtype} of shape {shape}, {needed} bytes, but has {end - begin} bytes")
    return _Entry(file, start + begin, start + end, tuple(shape), DTYPES[dtype])


def _naturals(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > 8:
        return False
    return all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _check_names(folder: Path, config: ModelConfig, entries: dict[str, _Entry]) -> None:
    """Raise BadInput unless names, shapes and dtypes are those of `config`."""
    if quantization := config.raw.get("quantization_config"):
        raise BadInput(f"{config.path}: these weights are already quantized ({_show(quantization)})")
    expected = config.expected_tensors()
    for name, entry in entries.items():
        if name.endswith(".bias"):
            raise BadInput(f"{entry.file}: {_show(name)} is a bias, dense Phi-3 models have none")
    layers = {int(match[1]) for name in entries if (match := LAYER.match(name))}
    if len(layers) != config.num_hidden_layers:
        raise BadInput(
            f"{folder} has {len(layers)} layers of tensors, "
            f"config.json says num_hidden_layers {config.num_hidden_layers}"
        )
    for name in expected:
        if name not in entries:
            untied = ", and config.json says tie_word_embeddings is false" if name == "lm_head.weight" else ""
            raise BadInput(f"{folder} has no tensor {name}{untied}")
    for name, entry in entries.items():
        if name not in expected:
            raise BadInput(f"{entry.file}: {_show(name)} is not a tensor of a dense Phi-3 model")
        if entry.shape != expected[name]:
            raise BadInput(f"{entry.file}: {name} has shape {entry.shape}, config.json makes it {expected[name]}")
        if entry.dtype not in MODEL_DTYPES:
            raise BadInput(f"{entry.file}: {name} is {entry.dtype}, not bfloat16, float16 or float32")


def _same_bytes(checkpoint: Checkpoint, one: str, other: str, rows: int = 4096) -> bool:
    if checkpoint.shape(one) != checkpoint.shape(other) or checkpoint.dtype(one) != checkpoint.dtype(other):
        return False
    pair = [checkpoint.tensor(name).view(torch.uint8) for name in (one, other)]
    for start in range(0, pair[0].shape[0], rows):
        if not torch.equal(*(tensor[start : start + rows] for tensor in pair)):
            return False
        checkpoint.release(one)
        checkpoint.release(other)
    return True


def _show(value: Any) -> str:
    """A foreign value, short and printable."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
