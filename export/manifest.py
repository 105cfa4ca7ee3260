"""What a `.pte` was made of, with which options and packages, and what was checked: the JSON beside the file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from checkpoints.source import Source
    from export.graph import Graph
    from export.pte import Exported

PACKAGES = ("pocketphi", "executorch", "torch", "torchao", "transformers")
CONFIG_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "original_max_position_embeddings",
)  # fmt: skip


def make_manifest(
    file: Path,
    name: str,
    source: Source,
    opened: Any,
    options: dict[str, Any],
    graph: Graph,
    report: Any,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    """Everything needed to make the file again and to know it; sizes in bytes, hashes sha256 in hex."""
    from checkpoints.weights import sha256  # imports torch, which a reader of manifests does not need

    config = opened.config
    planned = sum(graph.planned_bytes)
    item = 2 if options["kv_cache"] == "bf16" else 4
    kv_bytes = 2 * config.num_hidden_layers * options["context"] * config.kv_dim * item
    files = sorted(
        path
        for path in source.folder.iterdir()
        if path.suffix in (".json", ".jinja", ".safetensors", ".bin", ".model")
    )
    return {
        "file": {"name": name, "bytes": file.stat().st_size, "sha256": sha256(file)},
        "checkpoint": {
            "name": source.name,
            "kind": source.kind,
            "revision": source.revision,
            "sha256": {path.name: sha256(path) for path in files},
        },
        "config": {key: getattr(config, key) for key in CONFIG_KEYS},
        "options": options,
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "planned": {"kv_cache_bytes": kv_bytes, "activation_bytes": planned - kv_bytes},
        "notes": list(notes),
        "verification": asdict(report) if is_dataclass(report) and not isinstance(report, type) else None,
    }


def write_whole(path: Path, data: bytes) -> None:
    """Write aside, force to disk, rename: the file is the old one or the new one, never half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def print_manifest(exported: Exported) -> None:
    """The few lines a person wants to see at the end."""
    manifest = exported.manifest
    table = Table(show_header=False, box=None, pad_edge=False)
    planned, options = manifest["planned"], manifest["options"]
    rows = {
        "file": f"{exported.path}  {manifest['file']['bytes'] / 1e6:,.1f} MB",
        "beside it": f"{exported.tokenizer_path.name}, {exported.manifest_path.name}",
        "sha256": manifest["file"]["sha256"],
        "weights": options["recipe"],
        "context": f"{options['context']} tokens, {options['prefill_chunk']} at once",
        "planned": f"KV cache {planned['kv_cache_bytes'] / 1e6:,.1f} MB ({options['kv_cache']}), "
        f"activations {planned['activation_bytes'] / 1e6:,.1f} MB",
        "verified": "yes" if manifest["verification"] else "no (--no-verify)",
    }
    for key, value in rows.items():
        table.add_row(f"[bold]{key}", value)
    console = Console()
    console.print(table)
    for note in manifest["notes"]:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def read_manifest(pte: Path) -> dict[str, Any] | None:
    """The manifest beside a `.pte`, None without one."""
    path = pte.with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else None
