"""A tied checkpoint seen, or written, with a weight of its own for lm_head.

So embedding and head can be quantized differently. Nothing else changes, and seeing it so copies nothing: a tied
checkpoint reads the embedding's rows under the second name.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from checkpoints.config import ADAPTER, ModelConfig, read_object
from checkpoints.errors import BadInput
from checkpoints.files import (
    CHUNK,
    Progress,
    check_folder,
    copy_rest,
    link_or_copy,
    tensor_bytes,
    whole_folder,
    write_json,
)
from checkpoints.roles import EMBEDDING, HEAD, usual_name
from checkpoints.safetensors_io import make_header
from checkpoints.weights import INDEX, Checkpoint, open_checkpoint


class Untied:
    """A checkpoint seen with `lm_head.weight` present and `tie_word_embeddings` false."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tied = checkpoint.config.tie_word_embeddings
        self.config: ModelConfig = dataclasses.replace(checkpoint.config, tie_word_embeddings=False)

    def source(self, name: str) -> str:
        """The name under which the checkpoint stores `name`."""
        return EMBEDDING if self.tied and name == HEAD else name

    def names(self) -> list[str]:
        return self.checkpoint.names() + ([HEAD] if self.tied else [])

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(self.source(name))

    def origin(self, name: str) -> str:
        return self.checkpoint.origin(self.source(name))

    def dtype(self, name: str) -> torch.dtype:
        return self.checkpoint.dtype(self.source(name))

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Checkpoint.rows`."""
        return self.checkpoint.rows(self.source(name), start, stop)

    def tensor(self, name: str) -> torch.Tensor:
        """See `Checkpoint.tensor`."""
        return self.checkpoint.tensor(self.source(name))

    def prefetch(self, name: str) -> None:
        self.checkpoint.prefetch(self.source(name))

    def release(self, name: str) -> None:
        self.checkpoint.release(self.source(name))


def write_untied(opened: Checkpoint, out: Path, progress: Callable[[int], AbstractContextManager[Progress]]) -> None:
    """Write a tied checkpoint untied at `out`; whole or not at all.

    The files of weights are hard links to the checkpoint's where that is possible, copies elsewhere; one more holds
    lm_head.weight. `progress` is told all bytes, then each piece's. Raises BadInput for an untied checkpoint, a taken
    name and too small a disk.
    """
    if not opened.config.tie_word_embeddings:
        raise BadInput(f"{opened.folder} is untied already")
    if opened.files[0].suffix == ".gguf":
        raise BadInput(f"{opened.files[0]} is a GGUF file, only safetensors can be untied on disk")
    check_folder(out)
    found = open_checkpoint(opened.folder, check=False)
    stored, files = found.names(), found.files
    # Files may hold a copy of the embedding as the head, or the head alone.
    missing = next((name for name in (HEAD, EMBEDDING) if name not in map(usual_name, stored)), None)
    beside = [file for file in opened.files if file not in files]  # adapters of a multimodal model
    head = opened.nbytes(EMBEDDING)
    total = head + sum(file.stat().st_size for file in opened.files)
    linked = files[0].stat().st_dev == out.resolve().parent.stat().st_dev
    with whole_folder(out, head if linked else total) as folder, progress(total) as count:
        copy_rest(opened.folder, folder)
        write_json(folder / "config.json", opened.config.raw | {"tie_word_embeddings": False})
        shards = len(files) + (missing is not None)
        renamed = {file.name: _shard(i, shards) for i, file in enumerate(files, start=1)}
        for file in files:
            link_or_copy(file, folder / renamed[file.name], count)
        for file in beside:
            place = folder / file.parent.name
            place.mkdir()
            link_or_copy(file, place / file.name, count)
            shutil.copyfile(file.with_name(ADAPTER), place / ADAPTER)
        index = dict.fromkeys(stored, files[0].name)
        if len(files) > 1:
            index = read_object(opened.folder / INDEX)["weight_map"]
        weight_map = {name: renamed[file] for name, file in index.items()}
        if missing:
            weight_map[missing] = _shard(shards, shards)
            _write_copy(folder / weight_map[missing], missing, opened, count)
        size = sum(map(found.nbytes, stored)) + (head if missing else 0)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _shard(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def _write_copy(path: Path, name: str, checkpoint: Checkpoint, count: Progress) -> None:
    """A safetensors file of the embedding under another name."""
    weight = checkpoint.tensor(EMBEDDING)
    header, _ = make_header({name: weight}, {"format": "pt"})
    step = max(1, CHUNK // weight[0].nbytes)
    with path.open("xb") as file:  # never into a linked file
        file.write(header)
        for start in range(0, len(weight), step):
            piece = weight[start : start + step]
            file.write(tensor_bytes(piece))
            checkpoint.release(EMBEDDING)
            count(piece.nbytes)
