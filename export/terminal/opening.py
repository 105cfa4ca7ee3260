"""Opens a conversation for the terminal: shows how far loading is, and what became of the packed weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from checkpoints.errors import BadInput
from checkpoints.files import read_json
from export.engine.conversation import Conversation, open_conversation
from export.engine.feeder import EngineName, NativeFeeder
from export.progress import Stages


def open_in_terminal(
    path: Path,
    engine: EngineName | None,
    packed: Path | None,
    threads: int,
    context: int | None,
    tokenizer: Path | None,
) -> Conversation:
    """A conversation, with a bar on stderr while it loads and a line on what was packed, where that is a terminal."""
    options = {"engine": engine, "packed": packed, "threads": threads, "context": context, "tokenizer": tokenizer}
    if not sys.stderr.isatty():
        return open_conversation(path, **options)  # type: ignore[arg-type]
    stages = Stages()
    with stages.running(), stages.stage("loading", path.stat().st_size) as update:
        found = open_conversation(path, **options, on_progress=lambda done, total: update(done))  # type: ignore[arg-type]
    if packed is not None and isinstance(found.feeder, NativeFeeder):
        stages.console.print(_packing(found.feeder, packed), style="dim", highlight=False, soft_wrap=True)
    return found


def _packing(feeder: NativeFeeder, folder: Path) -> str:
    loaded = feeder.loaded
    if loaded.packed_note:
        return f"weights are packed at every start: {loaded.packed_note}"
    size = f"{loaded.packed_bytes / 1e6:,.0f} MB"
    if loaded.packing.name == "PACKED":
        return f"{size} of packed weights are kept in {folder} for the next start; delete it whenever you like"
    return f"{size} of packed weights from {folder}"


def read_schema(name: str) -> dict[str, Any] | Literal["json"]:
    """A JSON schema from a file, or "json"."""
    if name == "json":
        return "json"
    schema = read_json(Path(name))
    if not isinstance(schema, dict):
        raise BadInput(f"{name} is no JSON schema: it is not an object")
    return schema
