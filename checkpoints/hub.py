"""Repositories of the hub: how one is named, what it holds, and its files in the hub client's own cache.

The download is snapshot_download of huggingface_hub with its cache, retries and progress bars; this module adds one
question first, which also works without a network, and one-sentence errors. It does not look inside what it finds.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    IncompleteSnapshotError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from checkpoints.errors import BadInput

PREFIX = "hf:"
TIMEOUT = 10.0  # seconds for the first answer of the hub
ID = r"[\w.-]+/[\w.-]+"
REFERENCE = re.compile(rf"hf:({ID})(?:@(refs/pr/\d+|[^/@\s]+))?(?:/([^\s].*))?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """What `hf:USER/NAME[@REV][/PATH]` names."""

    repo: str
    revision: str | None
    path: str | None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Answer:
    """What the hub said when it was asked for a repository, or why it said nothing."""

    repo: str
    revision: str  # a branch, tag or commit
    files: tuple[str, ...]  # paths, none where it said nothing
    failure: Exception | None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def is_id(name: str) -> bool:
    """Whether a repository could have this name, USER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return re.fullmatch(ID, name, re.ASCII) is not None


def is_reference(name: str) -> bool:
    return name.startswith(PREFIX)


def parse_reference(name: str) -> Reference:
    """Take `hf:USER/NAME[@REV][/PATH]` apart; BadInput for anything else."""
    match = REFERENCE.fullmatch(name)
    if match is None or not is_id(match[1]) or (match[3] and ".." in match[3].split("/")):
        raise BadInput(f"{name!r} is not of the form hf:USER/NAME, hf:USER/NAME@REVISION or either with /FILE")
    return Reference(match[1], match[2], match[3])


def ask(repo: str, revision: str, timeout: float = TIMEOUT) -> Answer:
    """Ask the hub once for a repository's files: its client repeats its own first question for half a minute.

    Errors come from whichever HTTP library the client is built on, so all are caught, to be told by `download` if the
    cache has not what is wanted.
    """
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=timeout)
    except Exception as problem:
        return Answer(repo, revision, (), problem)
    return Answer(repo, revision, tuple(file.rfilename for file in info.siblings or ()), None)


def download(answer: Answer, allow: Sequence[str], ignore: Sequence[str], ways_on: str) -> Path:
    """The folder of a snapshot with the files that match `allow` and not `ignore`, from the cache where it has them.

    The cache names the folder by its commit. BadInput where they are not to be had, ending with what to do instead.
    """
    try:
        found = snapshot_download(
            answer.repo,
            revision=answer.revision,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
            local_files_only=answer.failure is not None,
        )
    except Exception as problem:
        if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
            raise
        raise BadInput(_absent(answer, problem, ways_on)) from None
    return Path(found)


def _absent(answer: Answer, problem: Exception, ways_on: str) -> str:
    """The sentence for what is not to be had; `problem` is why the download, or the look into the cache, failed."""
    cause = answer.failure or problem
    if isinstance(cause, GatedRepoError):
        return f"{answer} is gated: accept its terms on the hub and log in with `hf auth login`, or {ways_on}"
    if isinstance(cause, RevisionNotFoundError):
        return f"the hub has no revision {answer}: check it, or {ways_on}"
    if isinstance(cause, RepositoryNotFoundError):
        return f"the hub has no {answer}, or it is private and you are not logged in: check it, or {ways_on}"
    if answer.failure is None:
        return f"the download of {answer} stopped ({reason(cause)}): run again, files already whole are kept"
    cache = "only partly" if isinstance(problem, IncompleteSnapshotError) else "not"
    return f"{answer} is {cache} in the local cache and asking the hub failed ({reason(cause)}): {ways_on}"


def reason(problem: Exception) -> str:
    """An error of the client in few words."""
    text = " ".join(re.split(r"\.?\s*\n|: offline mode", str(problem))[0].split())
    return f"{type(problem).__name__}: {text[:160]}"
