"""What a `.pte` was made of, with which options and packages, and what was checked: the JSON beside the file."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoints.config import ModelConfig
    from checkpoints.source import Source
    from export.options import ExportOptions
    from export.verification.compare import Report

PACKAGES = ("pocketphi", "executorch", "torch", "torchao", "transformers")
CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "original_max_position_embeddings",
)

Manifest = dict[str, Any]


def make_manifest(
    config: ModelConfig,
    options: ExportOptions,
    planned_bytes: int,
    file: Mapping[str, str | int],
    source: Source,
    inputs: Mapping[str, str],
    notes: tuple[str, ...],
    report: Report | None,
) -> Manifest:
    """Everything needed to make the file again and to know it.

    `planned_bytes` are all arenas of `forward`; `file` is the .pte's name, bytes and sha256, `inputs` the sha256 of
    each file of the checkpoint that was used.
    """
    from export.models import kv_cache

    kv_bytes = kv_cache.cache_bytes(config, options.context, kv_cache.DTYPES[options.kv_cache])
    return {
        "file": dict(file),
        "checkpoint": {
            "name": source.name,
            "kind": source.kind,
            "revision": source.revision,
            "sha256": dict(inputs),
        },
        "config": {key: getattr(config, key) for key in CONFIG_KEYS},
        "recipe": str(options.recipe),
        "options": asdict(options) | {"eos_ids": list(options.eos_ids)},
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "planned": {"kv_cache_bytes": kv_bytes, "activation_bytes": planned_bytes - kv_bytes},
        "notes": list(notes),
        "verification": None if report is None else asdict(report),
    }


def manifest_path(pte: Path) -> Path:
    """Where the manifest of a `.pte` lies."""
    return pte.with_suffix(".json")


def read_manifest(pte: Path) -> Manifest | None:
    """The JSON object beside a `.pte` under its manifest's name, None without one; ValueError where it is no JSON."""
    path = manifest_path(pte)
    if not path.is_file():
        return None
    manifest = json.loads(path.read_bytes())
    if not isinstance(manifest, dict):
        raise ValueError(f"a JSON {type(manifest).__name__} is no manifest")
    return manifest
