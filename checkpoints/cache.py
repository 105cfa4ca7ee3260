"""Folders made on first use and kept in the user's cache, once for each version of what they are made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from checkpoints.errors import BadInput
from checkpoints.files import whole_folder

CACHE = "POCKETPHI_CACHE"  # else the user's own cache


def cache_folder() -> Path:
    """The user's folder for what can be made again; BadInput where it cannot be made."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pocketphi")
    cache = Path(os.environ.get(CACHE) or own)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadInput(f"{cache} cannot be written to: {problem.strerror}") from None
    return cache


def made_once(name: str, parts: Iterable[bytes], build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled from `parts`: filled here unless it is there, or another process is at it.

    BadInput where the cache cannot be written to.
    """
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    cache = cache_folder()
    folder = cache / f"{name}-{digest[:16]}"
    if folder.is_dir():
        return folder
    try:
        lock = (cache / ".lock").open("w")
    except OSError as problem:
        raise BadInput(f"{cache} cannot be written to: {problem.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with whole_folder(folder) as made:
                build(made)
    return folder
