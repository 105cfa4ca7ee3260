"""Maps a folder of safetensors files and checks, before reading a weight, that they hold the model declared.

One tensor at a time: `tensor` maps that tensor's bytes alone, and they leave memory with its last reference
or at `release`, so a pass over all weights stays within the largest tensor. No pickle is ever opened. Knows
nothing of quantization or of what the weights are for.
"""

import mmap
import os
import re
import weakref
from pathlib import Path

import torch

from checkpoints.config import ModelConfig, read_config, read_object
from checkpoints.errors import BadInput, show
from checkpoints.phi3 import EMBEDDING, HEAD, LEGACY, check_tensors, tensor_shapes
from checkpoints.safetensors_io import Entry, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The weights of one folder, open for reading; use open_checkpoint to get one."""

    def __init__(self, folder: Path, config: ModelConfig, files: list[Path], entries: dict[str, Entry]) -> None:
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

    def _entry(self, name: str) -> Entry:
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
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file)[0].items():
            if name in entries:
                raise BadInput(f"{show(name)} is both in {entries[name].file} and in {file.name}")
            entries[name] = entry
    for name, file in index.items():
        if name not in entries or entries[name].file != file:
            raise BadInput(f"{folder / INDEX} says {show(name)} is in {file.name}, which does not hold it")
    if not check:
        return Checkpoint(folder, config, files, entries)

    entries = {name: entry for name, entry in entries.items() if not LEGACY.fullmatch(name)}
    tied_head = entries.pop(HEAD, None) if config.tie_word_embeddings else None
    check_tensors(folder, config, entries)
    entries = {name: entries[name] for name in tensor_shapes(config)}
    if tied_head and not _same_bytes(
        Checkpoint(folder, config, files, entries | {HEAD: tied_head}),
        HEAD,
        EMBEDDING,
    ):
        raise BadInput(
            f"{tied_head.file}: lm_head.weight differs from model.embed_tokens.weight, "
            "but config.json says tie_word_embeddings is true"
        )
    return Checkpoint(folder, config, files, entries)


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
                f"{folder / INDEX}: weight_map has {show(name)} in {show(shard)}, "
                "which is not the name of a .safetensors file in this folder"
            )
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise BadInput(f"{folder / shard} is missing, {INDEX} names {len(shards)} files of weights")
    return [folder / shard for shard in shards], {name: folder / shard for name, shard in weight_map.items()}


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
