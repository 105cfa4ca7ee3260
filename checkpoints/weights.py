"""Maps safetensors files of a folder, or one GGUF file, and checks before reading that they hold the model declared.

One tensor at a time: `rows` and `tensor` map that tensor's bytes alone, and they leave memory with their last
reference or at `release`, so a pass over all weights stays within the largest tensor. Weights that the files have in
pieces are put together, adapters merged, and what a GGUF file quantizes decoded to float32, as rows are asked for. No
pickle is ever opened. Knows nothing of our quantization or of what the weights are for.
"""

import mmap
import os
import re
import weakref
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache, reduce
from pathlib import Path
from types import MappingProxyType

import torch

from checkpoints.adapters import LowRank, merge, own_factors, read_changes, read_factors
from checkpoints.config import ADAPTER, ModelConfig, alone, read_config, read_object, text_alone, with_modalities
from checkpoints.errors import BadInput, show
from checkpoints.families import model_tensors, tensor_shapes
from checkpoints.files import present
from checkpoints.gguf_io import Blocks
from checkpoints.gguf_model import WEIGHTS, gguf_tensors
from checkpoints.phi4mm_config import ADAPTERS, MODALITIES
from checkpoints.roles import EMBEDDING, HEAD
from checkpoints.safetensors_io import Entry, read_header
from checkpoints.source import Adapter, Source

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The weights of one folder, open for reading; use open_checkpoint to get one."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        files: list[Path],
        parts: dict[str, tuple[Entry, ...]],
        added: Mapping[str, tuple[LowRank, ...]] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.config = config
        self.files = files
        self._parts = parts  # what the rows of a weight are stored in, one after another
        self._added = added
        self._factors = lru_cache(maxsize=8)(read_factors)  # threads read a few weights at once, in pieces
        self._maps: weakref.WeakValueDictionary[Entry, mmap.mmap] = weakref.WeakValueDictionary()

    def names(self) -> list[str]:
        """Names of all weights: in model order, or in file order when opened with check=False."""
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        parts = self._of(name)
        return (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if len(parts) > 1 else parts[0].shape

    def dtype(self, name: str) -> torch.dtype:
        """Of the rows; float32 where an adapter is merged into them."""
        if name in self._added:
            return torch.float32
        return reduce(torch.promote_types, (part.dtype for part in self._of(name)))

    def origin(self, name: str) -> str:
        """The files a weight is made of, for sentences."""
        files = [part.file for part in self._of(name)] + [low.left.file for low in self._added.get(name, ())]
        return " + ".join(dict.fromkeys(map(str, files)))

    def nbytes(self, name: str) -> int:
        """In the files."""
        return sum(part.end - part.begin for part in self._of(name))

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop of a weight (elements, of a vector), in the dtype they are stored in.

        Mapped from the file as `tensor` is, where they lie together and nothing is merged into them.
        """
        pieces, first = [], 0
        for part in self._of(name):
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high:
                stored = self._mapped(part)
                pieces.append(part.rows(stored, low, high) if isinstance(part, Blocks) else stored[low:high])
            first += part.shape[0]
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return (
            merge(rows, start, self._added[name], self._factors) if name in self._added else rows.to(self.dtype(name))
        )

    def tensor(self, name: str) -> torch.Tensor:
        """The weight as a CPU tensor of its own shape and dtype, mapped from the file and not copied.

        Pages become resident as they are read and leave with the last view, so slices of a large weight can
        be read with `release` between them. Writing to the tensor never reaches the file. A weight that the files
        have in pieces or as blocks, or that an adapter changes, is made anew.
        """
        parts = self._of(name)
        return (
            self._mapped(parts[0])
            if len(parts) == 1 and name not in self._added and not isinstance(parts[0], Blocks)
            else self.rows(name, 0, self.shape(name)[0])
        )

    def _mapped(self, entry: Entry) -> torch.Tensor:
        shape, dtype = entry.stored if isinstance(entry, Blocks) else (entry.shape, entry.dtype)
        size, itemsize = entry.end - entry.begin, dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        start = entry.begin - entry.begin % mmap.ALLOCATIONGRANULARITY
        pages = self._maps.get(entry)
        if pages is None:
            with entry.file.open("rb") as file:
                # Private and writable: torch wants to be able to write, the user's file must stay as it is.
                # Per tensor: Linux may refuse such a map of a whole file that is larger than memory.
                pages = mmap.mmap(file.fileno(), entry.end - start, access=mmap.ACCESS_COPY, offset=start)
            self._maps[entry] = pages
        if entry.begin % itemsize:  # files of other writers may be unaligned, which vector loads do not bear
            data = bytearray(memoryview(pages)[entry.begin - start :])
            return torch.frombuffer(data, dtype=dtype).reshape(shape)
        flat = torch.frombuffer(pages, dtype=dtype, count=size // itemsize, offset=entry.begin - start)
        return flat.reshape(shape)

    def prefetch(self, name: str) -> None:
        """Ask the system to read the weight's bytes in the background; without effect where it cannot."""
        for part in self._of(name):
            if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
                with part.file.open("rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), part.begin, part.end - part.begin, os.POSIX_FADV_WILLNEED)

    def release(self, name: str) -> None:
        """Drop the weight's pages from this process; views stay valid and read the file again when used."""
        for part in self._of(name):
            pages = self._maps.get(part)
            if pages is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                pages.madvise(mmap.MADV_DONTNEED)

    def _of(self, name: str) -> tuple[Entry, ...]:
        if name not in self._parts:
            raise KeyError(f"{self.folder} has no tensor {name}")
        return self._parts[name]


def open_checkpoint(
    folder: Path,
    adapters: tuple[Adapter, ...] = (),
    *,
    check: bool = True,
    modalities: Collection[str] = MODALITIES,
    own_adapter: str | None = None,
) -> Checkpoint:
    """Map model.safetensors, the shards model.safetensors.index.json names, or else model.gguf, and check them.

    Of a multimodal model it holds what `modalities` need, and `config.multimodal` is that part: other encoders and
    adapters may be missing. Text alone is a dense Phi-3. So is, whatever the modalities, text with `own_adapter`
    ("vision" or "speech") merged into it. A text model is the same with any modalities and has no such adapter.

    Reads headers only, except that an lm_head.weight beside tied embeddings is compared with them: where it differs
    the model is untied, as for transformers. Raises BadInput for a missing, damaged or cut file, and, unless `check`
    is False, for names, shapes or dtypes that are not those of the model in config.json or of `adapters`.
    check=False leaves names as found, for quantized ones.
    """
    config = _wanted(read_config(folder), modalities, own_adapter)
    files, entries = _read_headers(folder)
    if not check:
        return Checkpoint(folder, config, files, {name: (entry,) for name, entry in entries.items()})

    parts = model_tensors(folder, config, entries)
    files += sorted({part.file for of_one in parts.values() for part in of_one} - set(files))  # adapters of the model
    own: Mapping[str, tuple[LowRank, ...]] = {}
    if own_adapter is not None and config.multimodal is not None:
        own = own_factors(own_adapter, config.multimodal.loras[own_adapter].scale, parts)
    if config.multimodal is not None and (own or not (config.multimodal.vision or config.multimodal.audio)):
        config = text_alone(config)
        parts = {name: parts[name] for name in (*tensor_shapes(config), HEAD) if name in parts}
    changes = read_changes(adapters, config)
    if config.tie_word_embeddings:
        if HEAD in parts and not _same_values(Checkpoint(folder, config, files, parts), HEAD, EMBEDDING):
            note = (
                f"{folder}: lm_head.weight differs from the embedding, so each is exported, as transformers loads it"
            )
            notes = (*config.notes, f"{note}, though config.json says tie_word_embeddings is true")
            config = replace(config, tie_word_embeddings=False, notes=notes)
        elif changes.touch(HEAD) or changes.touch(EMBEDDING):
            parts[HEAD] = parts[EMBEDDING]
            config = replace(config, tie_word_embeddings=False)
        else:
            parts.pop(HEAD, None)
    parts |= {name: (entry,) for name, entry in changes.replaced.items()}
    own = {name: low for name, low in own.items() if name not in changes.replaced}
    added = {name: (*own.get(name, ()), *changes.added.get(name, ())) for name in own.keys() | changes.added.keys()}
    return Checkpoint(folder, config, files, parts, added)


def wanted_config(source: Source) -> ModelConfig:
    """The configuration of what `open_checkpoint` would read of a source, without a look at its weights."""
    config = _wanted(
        read_config(source.folder), MODALITIES if source.modalities is None else source.modalities, source.own_adapter
    )
    media = config.multimodal
    if media is not None and (source.own_adapter or not (media.vision or media.audio)):
        return text_alone(config)
    return config


def _wanted(config: ModelConfig, modalities: Collection[str], own_adapter: str | None) -> ModelConfig:
    """The part of a model that is to be read; for an adapter that is to be merged, what its modality needs."""
    if own_adapter is None:
        return with_modalities(config, modalities)
    if config.multimodal is None:
        raise BadInput(f"{config.path} is of a text model, which has no adapter {own_adapter} of its own")
    if own_adapter not in ADAPTERS.values():
        raise BadInput(f"the adapter {own_adapter} is not one of {', '.join(ADAPTERS.values())}")
    return with_modalities(config, [modality for modality, name in ADAPTERS.items() if name == own_adapter])


def _read_headers(folder: Path) -> tuple[list[Path], dict[str, Entry]]:
    """The files of weights, and where in them each tensor lies."""
    files, index = _find_files(folder)
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in (gguf_tensors(file) if file.suffix == ".gguf" else read_header(file)[0]).items():
            if name in entries:
                raise BadInput(f"{show(name)} is both in {entries[name].file} and in {file.name}")
            entries[name] = entry
    for name, file in index.items():
        if name not in entries or entries[name].file != file:
            raise BadInput(f"{folder / INDEX} says {show(name)} is in {file.name}, which does not hold it")
    return files, entries


def _find_files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files of weights in name order, and the file the index (empty if none) names for each tensor."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    if not (folder / INDEX).is_file():
        if present(folder / WEIGHTS):
            return [(folder / WEIGHTS).resolve()], {}
        if (folder / ADAPTER).is_file():
            raise BadInput(alone(folder))
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


def _same_values(checkpoint: Checkpoint, one: str, other: str, rows: int = 4096) -> bool:
    dtype = torch.promote_types(checkpoint.dtype(one), checkpoint.dtype(other))
    for start in range(0, checkpoint.shape(one)[0], rows):
        if not torch.equal(*(checkpoint.rows(name, start, start + rows).to(dtype) for name in (one, other))):
            return False
        checkpoint.release(one)
        checkpoint.release(other)
    return True
