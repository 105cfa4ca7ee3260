"""What was found, kept by what it was found from: files, options, packages and our own sources.

Each result is a small JSON in the user's cache, so that a sweep that was stopped goes on, and another one with some
of the same recipes does only the rest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

from checkpoints.cache import cache_folder
from checkpoints.files import input_sha256, write_whole
from checkpoints.source import Source
from export.manifest import PACKAGES
from export.quantization.recipe import Recipe
from export.quantization.saved_reader import open_quantized

DOOR = b"\ncommand = partial(run, main)"
ROOT = Path(__file__).parents[2]
# Wings that a stage's result cannot depend on, beside those that only serve people.
SERVING = ("bench", "hub", "server", "sweeps", "terminal", "media")
OTHERS = {"export": (*SERVING, "evaluation"), "evaluate": SERVING, "bench": tuple(set(SERVING) - {"bench"})}


def key(stage: str, *facts: Any) -> str:
    """32 hex digits of everything that decides a result: `facts` are plain data or have a text that tells all."""
    versions = {package: importlib.metadata.version(package) for package in (*PACKAGES, "numpy")}
    told = json.dumps([stage, facts, versions, _sources(stage), platform.machine()], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def checkpoint_sha256(source: Source) -> dict[str, str]:
    """Of every file that decides an export, by its name."""
    beside = [path for path in source.folder.iterdir() if path.is_file() and path.stat().st_size < 1 << 28]
    files = {*open_quantized(source, Recipe()).files, *beside}
    return {path.name: input_sha256(path) for path in sorted(files)}


def load(name: str) -> dict[str, Any] | None:
    """A kept result by its key; None where there is none, or none that can be read."""
    try:
        found = json.loads(_path(name).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def keep(name: str, result: dict[str, Any]) -> None:
    """Keep a result by its key."""
    path = _path(name)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(result, indent=1).encode() + b"\n")


def _path(name: str) -> Path:
    return cache_folder() / "sweeps" / f"{name}.json"


@cache
def _sources(stage: str) -> str:
    """A digest of our own code, but for wings that cannot matter to a stage."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.joinpath("export").rglob("*")) + sorted(ROOT.joinpath("checkpoints").glob("*.py")):
        parts = path.relative_to(ROOT).parts
        code = path.suffix in (".py", ".cpp", ".h")
        if code and DOOR in path.read_bytes():
            continue  # a command that only calls
        if code and (parts[0] == "checkpoints" or parts[1] not in OTHERS[stage]):
            digest.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
