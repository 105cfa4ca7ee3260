"""Finds a `.pte` that a command is given: on this disk, or on the hub as hf:USER/NAME[@REVISION][/FILE.pte]."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path, PurePosixPath

from checkpoints.errors import BadInput
from checkpoints.hub import Answer, ask, download, is_reference, parse_reference

SUFFIX = ".pte"
WAYS_ON = "give a file that you have"


def resolve_file(name: str | os.PathLike[str]) -> Path:
    """The path of a `.pte`: the name itself, or in the hub's cache what hf:USER/NAME[@REVISION][/FILE.pte] names.

    Of the hub the file is downloaded with its tokenizer, chat template and manifest into one folder, unless they are
    in the cache, which is then also used without a network. The file is read once to compare its sha256 with its
    manifest's. Without FILE the repository must hold a single `.pte`. Raises BadInput.
    """
    text = os.fspath(name)
    if not is_reference(text):
        return Path(text)
    found = parse_reference(text)
    if found.path is not None and not found.path.endswith(SUFFIX):
        raise BadInput(f"{text}: {found.path} does not end in {SUFFIX}")
    answer = ask(found.repo, found.revision or "main")
    file = _choose(answer, found.path)
    folder = PurePosixPath(file).parent
    inside = "" if folder == PurePosixPath() else f"{glob.escape(str(folder))}/"
    wanted = [glob.escape(file), *(inside + pattern for pattern in _beside())]
    path = download(answer, wanted, [f"{inside}*/*"], WAYS_ON) / file
    if not path.is_file():  # in the cache, of a repository whose files are not known there
        raise BadInput(f"{answer} has no {file} in the local cache: {WAYS_ON}")
    _check(path, answer)
    return path


def resolve_name(name: str) -> str:
    """Of hf:USER/NAME the file's path; any other name, a checkpoint's too, as it is."""
    return str(resolve_file(name)) if is_reference(name) else name


def _beside() -> list[str]:
    """What a tokenizer, its settings, a chat template and a manifest are called."""
    from checkpoints.files import PATTERNS  # imports torch

    return [pattern for pattern in PATTERNS if pattern != "*.safetensors"]


def _choose(answer: Answer, path: str | None) -> str:
    """The one `.pte` that is meant; without an answer of the hub, of those in the cache."""
    if answer.failure is None:
        there = sorted(file for file in answer.files if file.endswith(SUFFIX))
    elif path is None:
        snapshot = download(answer, ["*" + SUFFIX], [], WAYS_ON)
        there = sorted(file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*" + SUFFIX))
    else:
        return path
    if path in there:
        return str(path)
    if not there:
        how = f"give the file that `python -m export.pte --checkpoint {answer.repo}` makes"
        raise BadInput(f"{answer} has no {SUFFIX}: {how}, or {WAYS_ON}")
    example = f"hf:{answer.repo}{'' if answer.revision == 'main' else f'@{answer.revision}'}/{there[0]}"
    if path is not None:
        raise BadInput(f"{answer} has no {path}, it has {', '.join(there)}: give {example} for the first")
    if len(there) > 1:
        raise BadInput(f"{answer} has {len(there)} files, {', '.join(there)}: name one, such as {example}")
    return there[0]


def _check(path: Path, answer: Answer) -> None:
    """Raise BadInput where a file is not its manifest's; one that is gets a mark, as reading it takes seconds."""
    from checkpoints.cache import cache_folder
    from checkpoints.files import hub_blob, sha256
    from export.manifest import manifest_path, own_manifest

    wanted = (own_manifest(path) or {}).get("file", {}).get("sha256")
    if wanted is None:  # another exporter's
        return
    if not isinstance(wanted, str) or not re.fullmatch("[0-9a-f]{64}", wanted):
        raise BadInput(f"{manifest_path(path).name} of {answer}: file.sha256 is {wanted!r:.80}, which is none")
    state = path.stat()
    mark = cache_folder() / "checked" / f"{wanted}-{state.st_size}-{state.st_mtime_ns}"
    if mark.exists():
        return
    if (found := sha256(path)) != wanted:
        how = f"its sha256 is {found[:12]}…, {manifest_path(path).name} says {wanted[:12]}…"
        blob = hub_blob(path) or path
        if blob.name == found:  # what the hub's client calls a large file
            raise BadInput(
                f"{path.name} of {answer} is not its manifest's, {how}: whoever published it must do so anew"
            )
        for each in (path.resolve(), blob, path):
            each.unlink(missing_ok=True)
        raise BadInput(f"{path.name} of {answer} was damaged on its way, {how}: run again to download it again")
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
