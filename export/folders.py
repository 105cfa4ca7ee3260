"""Makes a checkpoint folder beside its name and renames it when it is whole; copies what belongs in every
one.

Knows file names of the hub's layout and of safetensors; nothing of models, and it reads no weight.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from checkpoints.errors import BadInput
from checkpoints.source import PATTERNS
from export.progress import Stages

CHUNK = 1 << 24  # bytes copied or written between two looks at the progress
OWN = {"config.json", "model.safetensors.index.json"}  # written by each stage itself

Progress = Callable[[int], None]  # gets the bytes of each piece


def check_folder(out: Path, needed: int = 0) -> None:
    """Raise BadInput unless `out` can be made: no name taken, a folder to be in, `needed` bytes free."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} already exists and is not an empty folder")
    parent = out.resolve().parent
    if not parent.is_dir():
        raise BadInput(f"{out} cannot be made: the folder {parent} does not exist")
    if needed > (free := shutil.disk_usage(parent).free):
        raise BadInput(f"{out} needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free")


@contextmanager
def whole_folder(out: Path, needed: int = 0) -> Iterator[Path]:
    """A new folder to fill, which becomes `out` when the block ends well and is gone when it does not.

    Raises BadInput as check_folder does.
    """
    check_folder(out, needed)
    with TemporaryDirectory(dir=out.resolve().parent, prefix=f".{out.name}.") as aside:
        folder = Path(aside) / "folder"  # a folder of TemporaryDirectory's own cannot be read by others
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()
        os.rename(folder, out)


def copy_rest(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation_config.json, chat template and licence: all that is neither weights nor
    OWN."""
    for pattern in (*PATTERNS, "merges.txt"):
        for file in source.glob(pattern):
            if file.suffix != ".safetensors" and file.name not in OWN and not file.name.endswith(".bin.index.json"):
                shutil.copyfile(file, folder / file.name)


def link_or_copy(source: Path, target: Path, progress: Progress) -> None:
    """The same bytes under another name: a hard link where the file system has them, else a copy."""
    size = source.stat().st_size
    try:
        os.link(source.resolve(), target)  # a hub cache's file is itself a link to where its bytes are
        progress(size)
        return
    except OSError:
        pass
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(CHUNK):
            write.write(piece)
            progress(len(piece))


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def bar(name: str, total: int) -> Iterator[Progress]:
    """A progress bar on stderr of `total` bytes, fed with the bytes of each piece."""
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        update(done)

    stages = Stages()
    with stages.running(), stages.stage(name, total) as update:
        yield add
