"""What a `.pte` was made of, with which options and packages, and what was checked: the JSON beside the file."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from checkpoints.errors import BadInput
from checkpoints.files import folder_of, sha256

if TYPE_CHECKING:
    from checkpoints.config import ModelConfig
    from checkpoints.source import Source
    from export.options import ExportOptions

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


class Inputs(TypedDict):
    """What a file is made of."""

    sha256: dict[str, str]  # of the checkpoint's files, by name
    adapters: list[dict[str, Any]]  # name, scale and sha256 of each


def make_manifest(
    config: ModelConfig,
    options: ExportOptions,
    planned_bytes: int,
    file: Mapping[str, str | int],
    source: Source,
    inputs: Inputs,
    notes: tuple[str, ...],
    verification: dict[str, Any] | None,
) -> Manifest:
    """Everything needed to make the file again and to know it.

    `planned_bytes` are all arenas of `forward`; `file` is the .pte's name, bytes and sha256, `inputs` are the
    files of the checkpoint that were used, and the adapters.
    """
    from export.models import kv_cache
    from export.models.phi4mm.settings import media_facts

    kv_bytes = kv_cache.cache_bytes(config, options.context, kv_cache.CACHE_DTYPES[options.kv_cache])
    return {
        "file": dict(file),
        "checkpoint": {
            "name": source.name,
            "kind": source.kind,
            "revision": source.revision,
            "modalities": None if source.modalities is None else list(source.modalities),
            "merge": source.own_adapter,
            "text_weights": None if source.text_weights is None else source.text_weights.resolve().name,
            **inputs,
        },
        "config": {key: getattr(config, key) for key in CONFIG_KEYS},
        "media": asdict(media_facts(config.multimodal, options.max_crops)),
        "recipe": str(options.recipe),
        "options": asdict(options) | {"recipe": options.recipe.as_json(), "eos_ids": list(options.eos_ids)},
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "planned": {"kv_cache_bytes": kv_bytes, "activation_bytes": planned_bytes - kv_bytes},
        "notes": list(notes),
        "verification": verification,
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


def own_manifest(pte: Path) -> Manifest | None:
    """The manifest beside a `.pte`, None where there is none that is this file's; `files` is a dict if there."""
    try:
        manifest = read_manifest(pte) or {}
        own = manifest["file"]["name"] == pte.name and isinstance(manifest.get("files", {}), dict)
        return manifest if own else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_beside(pte: Path, names: Iterable[str]) -> None:
    """Raise BadInput where one of these files lies beside a `.pte` and is not what its manifest lists."""
    if (listed := (own_manifest(pte) or {}).get("files")) is None:
        return
    for name in names:
        path = folder_of(pte) / name
        if path.is_file() and sha256(path) != listed.get(name):
            how = f"another {name} than" if name in listed else f"a {name}, but not"
            raise BadInput(f"{path.parent} has {how} what {pte.name} was exported with, by {manifest_path(pte).name}")
