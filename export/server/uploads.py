"""Pictures and sound that are put on the page: in a folder of this process, bounded, and gone with it.

A browser keeps chats longer than a server its files. What a request of the page names that is not in the folder, any
more or ever, is taken out before Gradio sees it: so nothing else on this machine is opened, and nothing fetched.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from export.server.errors import Refused

GONE = "*(file gone)* "  # short, since a chat is called by its first words
PREFIX = "pocketphi-page-"
MOST_BYTES = 1 << 30  # in the folder; the oldest go first


@cache
def folder() -> Path:
    """Made when first asked for; those of servers that were killed go then."""
    root = Path(tempfile.gettempdir()).resolve()
    for other in root.glob(f"{PREFIX}*"):
        if _is_left(other):
            shutil.rmtree(other, ignore_errors=True)
    found = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    _lock(found)
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def _lock(found: Path) -> int:
    """A descriptor that says, as long as it is open, that the folder is somebody's; OSError where it is already."""
    descriptor = os.open(found, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_left(found: Path) -> bool:
    try:
        os.close(_lock(found))
    except OSError:
        return False
    return True


def is_upload(path: object) -> bool:
    """Whether that is a file in the folder."""
    try:
        found = Path(str(path)).resolve()
        return isinstance(path, str) and found.is_relative_to(folder()) and found.is_file()
    except (OSError, ValueError):
        return False


def make_room(coming: int) -> None:
    """Remove the oldest files until so many bytes more can come."""
    files = sorted(((facts.st_mtime, facts.st_size, path) for path, facts in _files()), reverse=True)
    size = coming
    for _, count, path in files:
        size += count
        if size > MOST_BYTES:
            path.unlink(missing_ok=True)


def only_uploads(body: bytes) -> bytes:
    """JSON of the page, in which a text stands for every file that is not in the folder.

    Refused for what is no JSON, and where it would have Gradio build a component.
    """
    try:
        found = json.loads(body or b"null")
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON", code="invalid_json") from None
    root: list[Any] = [found]
    left: list[Any] = [root]
    changed = False
    while left:
        one = left.pop()
        for key, value in list(one.items() if isinstance(one, dict) else enumerate(one)):
            if key in ("component", "instance"):
                raise Refused(400, f"the page takes text and files, and no {key}", code="unsupported_content")
            if isinstance(value, dict) and (replaced := _without_strangers(value)) is not value:
                one[key] = value = replaced
                changed = True
            if isinstance(value, dict | list):
                left.append(value)
    return json.dumps(root[0]).encode() if changed else body


def _without_strangers(value: dict[str, Any]) -> dict[str, Any]:
    """A file, or a part of a message that is one, with no address but its path; a text where it is not there."""
    inner = value.get("file") if isinstance(value.get("file"), dict) else None
    if inner is not None and not is_upload(inner.get("path")):
        return {"type": "text", "text": GONE}
    if "path" not in value and "url" not in value:
        return value
    if not is_upload(value.get("path")):
        return {"type": "text", "text": GONE}
    return value | {"url": None}


def _files() -> list[tuple[Path, Any]]:
    found = []
    for path in folder().rglob("*"):
        try:
            if path.is_file():
                found.append((path, path.stat()))
        except OSError:
            continue  # removed in this moment
    return found
