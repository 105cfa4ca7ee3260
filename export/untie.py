"""Gives lm_head a weight of its own, so that the embedding and the head can be quantized differently.

Nothing else changes. An export copies nothing: a tied checkpoint reads the embedding's rows under the second
name. `python -m export.untie --checkpoint C --out DIR` writes the copy, as a Hugging Face checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from checkpoints.config import ModelConfig, read_object
from checkpoints.errors import BadInput, run
from checkpoints.source import DEFAULT, EMBEDDED, resolve
from checkpoints.weights import DTYPES, INDEX, Checkpoint, open_checkpoint
from export.folders import (
    CHUNK,
    Progress,
    bar,
    check_folder,
    copy_rest,
    link_or_copy,
    whole_folder,
    write_json,
)
from export.progress import quiet

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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

    def tensor(self, name: str) -> torch.Tensor:
        """A view into the mapped file; see `Checkpoint.tensor`."""
        return self.checkpoint.tensor(self.source(name))

    def prefetch(self, name: str) -> None:
        self.checkpoint.prefetch(self.source(name))

    def release(self, name: str) -> None:
        self.checkpoint.release(self.source(name))


def untie(checkpoint: str | None = None, *, out: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Write a tied checkpoint (hub id, folder or "phi4-tiny") untied at `out`; whole or not at all.

    The files of weights are hard links to the checkpoint's where that is possible, copies elsewhere; one more
    holds lm_head.weight. Raises BadInput for an untied checkpoint, a taken name and too small a disk.
    """
    source, out = resolve(checkpoint, revision), Path(out)
    opened = open_checkpoint(source.folder)
    if not opened.config.tie_word_embeddings:
        raise BadInput(f"{opened.config.path}: tie_word_embeddings is false already")
    check_folder(out)
    stored = open_checkpoint(source.folder, check=False).names()
    head, files = opened.nbytes(EMBEDDING), opened.files
    total = head + sum(file.stat().st_size for file in files)
    linked = files[0].stat().st_dev == out.resolve().parent.stat().st_dev
    with whole_folder(out, head if linked else total) as folder, bar("untie", total) as progress:
        copy_rest(source.folder, folder)
        write_json(folder / "config.json", opened.config.raw | {"tie_word_embeddings": False})
        count = len(files) + (HEAD not in stored)  # the files may hold a copy of the embedding already
        renamed = {file.name: _shard(i, count) for i, file in enumerate(files, start=1)}
        for file in files:
            link_or_copy(file, folder / renamed[file.name], progress)
        index = dict.fromkeys(stored, files[0].name)
        if len(files) > 1:
            index = read_object(source.folder / INDEX)["weight_map"]
        weight_map = {name: renamed[file] for name, file in index.items()}
        if HEAD not in stored:
            weight_map[HEAD] = _shard(count, count)
            _write_head(folder / weight_map[HEAD], opened, progress)
        size = head + sum(map(opened.nbytes, opened.names()))
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    return out


def _shard(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def _write_head(path: Path, checkpoint: Checkpoint, progress: Progress) -> None:
    """A safetensors file of the embedding under the head's name."""
    weight = checkpoint.tensor(EMBEDDING)
    dtype = next(name for name, known in DTYPES.items() if known == weight.dtype)
    entry = {"dtype": dtype, "shape": list(weight.shape), "data_offsets": [0, weight.nbytes]}
    text = json.dumps({"__metadata__": {"format": "pt"}, HEAD: entry}).encode()
    text += b" " * (-len(text) % 8)
    step = max(1, CHUNK // weight[0].nbytes)
    with path.open("xb") as file:  # never into a linked file
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, len(weight), step):
            piece = weight[start : start + step]
            file.write(piece.view(torch.uint8).numpy().data)
            checkpoint.release(EMBEDDING)
            progress(piece.nbytes)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m export.untie", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", help=f"hub id, folder, or {EMBEDDED} (default: {DEFAULT})")
    parser.add_argument("--revision", help="commit, branch or tag of a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    flags = vars(parser.parse_args(argv))
    quiet(verbose=False)
    print(untie(**flags))


if __name__ == "__main__":
    run(main)
