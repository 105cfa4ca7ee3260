"""Files and folders that appear whole or not at all, their hashes, and room for them on the disk.

Knows file names of the hub's layout; nothing of models or of what is in a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor, uint8

from checkpoints.errors import BadInput

POINTER = b"version https://git-lfs.github.com/spec/"  # what git leaves where git-lfs has not fetched a file
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "*.tiktoken", "LICENSE*"]  # of a checkpoint
CHUNK = 1 << 24  # bytes copied or written between two looks at the progress
OWN = {"config.json", "model.safetensors.index.json"}  # written by each stage itself

Progress = Callable[[int], None]  # gets the bytes of each piece


def present(path: Path) -> bool:
    """Whether there is a file; BadInput for a link to nothing, or a folder, in its place."""
    if path.is_file():
        return True
    if os.path.lexists(path):
        raise BadInput(f"{path} is a {'folder' if path.is_dir() else 'link to nothing'}, not a file")
    return False


def check_fetched(path: Path, start: bytes) -> None:
    """Raise BadInput where a file begins as a pointer of git-lfs does."""
    if start.startswith(POINTER):
        raise BadInput(
            f"{path} is a pointer of git-lfs, its content was never fetched: run `git lfs pull` in its folder"
        )


def read_json(path: Path) -> Any:
    """Parse a JSON file; BadInput names the file when it cannot."""
    try:
        data = path.read_bytes()
        check_fetched(path, data)
        return json.loads(data)
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"{path} is not JSON: {reprlib.repr(str(problem))}") from None
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror}") from None


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in small pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_sha256(path: Path) -> str:
    """Of a checkpoint's file: the hub's client calls large files in its cache by their sha256, as the hub told it."""
    blob = hub_blob(path)
    return blob.name if blob and re.fullmatch("[0-9a-f]{64}", blob.name) else sha256(path)


def folder_of(path: Path) -> Path:
    """Where a file's neighbours lie: a link's beside what it leads to, unless that is a blob of the hub's cache."""
    return (path.absolute() if hub_blob(path) else path.resolve()).parent


def hub_blob(path: Path) -> Path | None:
    """What a file of a snapshot in the hub's cache is a link to, called as the hub calls its content; None elsewhere.

    That may itself be a link, to a store that repositories share and where names are other hashes.
    """
    if not path.is_symlink():
        return None
    blob = Path(os.path.normpath(path.absolute().parent / path.readlink()))
    return blob if blob.parent.name == "blobs" else None


# ---- one file


def write_whole(path: Path, data: bytes) -> None:
    """Write aside, force to disk, rename: the file is the old one or the new one, never half of it."""
    with aside(path) as partial:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """An empty file beside `path` that is gone afterwards unless it was renamed, also after Ctrl-C and SIGTERM."""
    handle, name = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    try:
        with _interruptible():
            yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, like Ctrl-C, is a KeyboardInterrupt, whatever comes of it where it hits.

    Some libraries swallow it with a bare `except` while they are imported, and are then only half there.
    """
    interrupted = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not the main thread: its owner handles signals
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, leave)
    try:
        yield
    except Exception:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def publish(partial: Path, path: Path) -> None:
    """Give a file from `aside` its name; mkstemp made it readable for its owner alone."""
    os.chmod(partial, 0o644)
    os.replace(partial, path)


def reserve(path: Path, size: int) -> None:
    """Make a file `size` bytes long at once, so that a full disk is known before the work and not after."""
    check_room(path, size)
    with open(path, "r+b") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def check_room(path: Path, size: int) -> None:
    """Raise BadInput unless the disk of `path` has `size` bytes left."""
    free = shutil.disk_usage(path.resolve().parent).free
    if free < size:
        raise BadInput(f"{path.parent} has {free / 1e6:,.1f} MB free, {size / 1e6:,.1f} MB are needed")


def write_at(file: int, view: memoryview, place: int) -> int:
    """Write bytes into an open file from `place` on; the first byte after them."""
    while view:
        count = os.pwrite(file, view, place)
        view, place = view[count:], place + count
    return place


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor, in order; not copied where it is contiguous."""
    return memoryview(tensor.contiguous().view(-1).view(uint8).numpy().data)


# ---- a folder


def check_folder(out: Path, needed: int = 0) -> None:
    """Raise BadInput unless `out` can be made: no name taken, a folder to be in, `needed` bytes free."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} already exists and is not an empty folder")
    parent = out.resolve().parent
    if not parent.is_dir():
        raise BadInput(f"{out} cannot be made: the folder {parent} does not exist")
    check_room(out, needed)


@contextmanager
def whole_folder(out: Path, needed: int = 0) -> Iterator[Path]:
    """A new folder to fill, which becomes `out` when the block ends well and is gone when it does not.

    Raises BadInput as check_folder does.
    """
    check_folder(out, needed)
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=f".{out.name}.") as place:
        folder = Path(place) / "folder"  # a folder of TemporaryDirectory's own cannot be read by others
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()
        os.rename(folder, out)


def copy_rest(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation_config.json, chat template and licence: all that is neither weights nor OWN."""
    for pattern in (*PATTERNS, "merges.txt"):
        for file in filter(Path.is_file, source.glob(pattern)):
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
