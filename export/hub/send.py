"""The upload: a repository that may be sent to, what is there already, and one commit with the rest.

The transfer is the hub client's own, with its retries and bars; contents that arrived before are not sent again, also
where an earlier upload was interrupted. A repository changes all at once or not at all, and other files in it stay.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from checkpoints.errors import BadInput
from checkpoints.hub import is_id, reason
from export.engine.tokenizer import COMPANIONS, TOKENIZERS
from export.hub.card import FILE_KEY
from export.hub.parcel import Item, Parcel

LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


@dataclass(frozen=True)
class Target:
    """Where to."""

    repo: str
    revision: str = "main"  # a branch, made from main where it does not exist
    public: bool = False
    replace_card: bool = False

    def __str__(self) -> str:
        return self.repo + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class Sent:
    """What came of it."""

    url: str
    commit: str | None  # None: everything was there
    there: frozenset[str]  # paths of what did not have to be sent


def check_target(target: Target, token: bool) -> None:
    """Raise BadInput for a name that no repository or branch can have, and where a token is needed, without one."""
    if not is_id(target.repo):
        raise BadInput(f"--repo {target.repo!r} is not of the form USER/NAME")
    if not re.fullmatch(r"[^/@\s]+", target.revision):
        raise BadInput(
            f"--revision {target.revision!r} cannot be fetched again by its name: no /, no @ and no spaces"
        )
    if token and get_token() is None:
        raise BadInput(f"publishing needs a token of the hub: {LOGIN}")


def send(parcel: Parcel, items: Sequence[Item], target: Target) -> Sent:
    """Publish `items`, the parcel's and the card. BadInput where the hub refuses, or a file changed meanwhile."""
    api = HfApi()
    with told(target):
        info = _prepare(api, target)
        stale = _check_taken(info, parcel, target)
        there = frozenset(item.path for item in items if _digest(item, info) in _digests(info, item.path))
        new = [item for item in items if item.path not in there]
        url = f"{api.endpoint}/{target.repo}" + ("" if target.revision == "main" else f"/tree/{target.revision}")
        if not new and not stale:
            return Sent(url, None, there)
        content = [item.content if isinstance(item.content, bytes) else str(item.content) for item in new]
        added = [CommitOperationAdd(item.path, data) for item, data in zip(new, content, strict=True)]
        api.preupload_lfs_files(target.repo, added, revision=target.revision, free_memory=False)
        for item, operation in zip(new, added, strict=True):
            if operation.upload_info.sha256.hex() != item.sha256:
                raise BadInput(f"{item.path} changed while it was sent: {target} is as it was, run again")
        message = f"Publish {parcel.pte.name}"
        gone = [CommitOperationDelete(name) for name in stale]
        commit = api.create_commit(target.repo, [*added, *gone], commit_message=message, revision=target.revision)
    return Sent(url, commit.oid, there)


def _prepare(api: HfApi, target: Target) -> Any:
    """The repository's and its branch's files, made where they do not exist."""
    try:
        info = api.model_info(target.repo, files_metadata=True)
    except RepositoryNotFoundError:
        api.create_repo(target.repo, private=not target.public)
        info = api.model_info(target.repo, files_metadata=True)
    if not target.public and not info.private:
        raise BadInput(f"{target.repo} exists and everyone can read it: --public publishes there")
    if target.public and info.private:
        raise BadInput(f"{target.repo} exists and is private: make it public in its settings, or leave --public out")
    if target.revision == "main":
        return info
    try:
        return api.model_info(target.repo, revision=target.revision, files_metadata=True)
    except RevisionNotFoundError:
        api.create_branch(target.repo, branch=target.revision)
        return api.model_info(target.repo, revision=target.revision, files_metadata=True)


def _check_taken(info: Any, parcel: Parcel, target: Target) -> list[str]:
    """Raise BadInput where names that a phone or the hub looks for are another model's there.

    Returns those that an older file of this name had beside it and this one has not.
    """
    names = {file.rfilename for file in info.siblings}
    more = [name for name in (*TOKENIZERS, *COMPANIONS) if name in names and name not in parcel.companions]
    others = sorted(name for name in names if name.endswith(".pte") and "/" not in name and name != parcel.pte.name)
    for item in parcel.items if others else ():
        if item.path in parcel.companions and _digest(item, info) not in _digests(info, item.path):
            raise BadInput(
                f"{target} has {others[0]} with another {item.path}, and a phone finds it by its name: give each "
                f"model a repository or a branch (--revision) of its own"
            )
    ours = False
    if "README.md" in names:
        readme = HfApi().hf_hub_download(target.repo, "README.md", revision=info.sha)
        ours = ModelCard.load(readme, ignore_metadata_errors=True).data.get(FILE_KEY) == parcel.pte.name
        if not ours and not target.replace_card:
            raise BadInput(
                f"{target} has a README.md that is not the card of {parcel.pte.name}: --replace-card replaces it"
            )
    if more and (others or not ours):
        raise BadInput(
            f"{target} has a {more[0]}, which {parcel.pte.name} was not exported with and which would be taken for "
            f"its own: remove it there, or take another repository or branch"
        )
    return more


def _digest(item: Item, info: Any) -> str:
    """What the hub calls a content: sha256 where it keeps the name's as a large file, else git's id."""
    large = next((file.lfs for file in info.siblings if file.rfilename == item.path), None)
    if large or isinstance(item.content, Path):
        return item.sha256
    return hashlib.sha1(b"blob %d\0" % item.bytes + item.content).hexdigest()


def _digests(info: Any, path: str) -> set[str]:
    """Of the content under a name there: none, or one."""
    return {file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings if file.rfilename == path}


@contextmanager
def told(target: Target) -> Iterator[None]:
    """Errors of the client as one sentence each; of whichever HTTP library it is built on."""
    try:
        yield
    except BadInput:
        raise
    except Exception as problem:
        if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
            raise
        cause = problem.__cause__ if isinstance(problem.__cause__, HfHubHTTPError) else problem
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        raise BadInput(_sentence(target, cause, status)) from None


def _sentence(target: Target, problem: BaseException, status: int | None) -> str:
    why = reason(problem) if isinstance(problem, Exception) else str(problem)
    if status == 401:
        return f"the hub does not know the token it was given: {LOGIN}"
    if status in (403, 404):
        message = getattr(problem, "server_message", None)
        return f"the token may not write to {target} ({message or why}): take one that may, or another --repo"
    if status == 409:
        return f"{target.repo} exists, and the token may not see it: take one that may, or another --repo"
    return f"the upload to {target} stopped ({why}): run again, what has arrived is not sent again"
