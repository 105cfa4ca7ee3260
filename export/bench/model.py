"""What lies beside a `.pte`: the facts of its manifest, and whether a tokenizer is the one it was exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.files import local_file
from export.manifest import read_manifest


def make_model(pte: Path, tokenizer: Path, sha256: str | None) -> dict[str, Any]:
    """What a document says of a model, with the facts of the manifest beside the file where there is one."""
    return {
        "file": pte.name,
        "size_bytes": pte.stat().st_size,
        "sha256": sha256,
        "tokenizer": tokenizer.name,
        "manifest": manifest_facts(pte),
    }


def manifest_facts(pte: Path) -> dict[str, Any] | None:
    """The facts of the manifest beside a `.pte`; None without one. BadInput for another file of its name."""
    try:
        manifest = read_manifest(pte)
        if manifest is None:
            return None
        options, planned = manifest["options"], manifest["planned"]
        # Older manifests have the text where newer ones have the recipe's numbers.
        recipe = manifest["recipe"] if "recipe" in manifest else options["recipe"]
        if not isinstance(recipe, str):
            raise TypeError(f"recipe is {recipe!r:.60}, not a text")
        return {
            "checkpoint": manifest["checkpoint"]["name"],
            "recipe": recipe,
            "context_tokens": options["context"],
            "prefill_chunk_tokens": options["prefill_chunk"],
            "kv_cache": options["kv_cache"],
            "planned_memory_bytes": planned["kv_cache_bytes"] + planned["activation_bytes"],
        }
    except (ValueError, KeyError, TypeError) as problem:
        path = pte.with_suffix(".json")
        raise BadInput(f"{path} is no manifest of {pte.name}: {type(problem).__name__} {problem}") from None


def beside(pte: Path, tokenizer: Path) -> list[Path]:
    """What goes to a device with the model: its tokenizer, and the manifest where there is one."""
    manifest = pte.with_suffix(".json")
    return [tokenizer, *([manifest] if manifest.is_file() and manifest.name != tokenizer.name else [])]


def check_tokenizer(pte: Path, tokenizer: Path) -> None:
    """Raise BadInput where the manifest names a file of the tokenizer's name with another hash."""
    files = (read_manifest(pte) or {}).get("files", {})
    wanted = files.get(tokenizer.name) if isinstance(files, dict) else None
    if wanted is not None and (found := local_file(tokenizer).sha256) != wanted:
        raise BadInput(
            f"{tokenizer} is not the tokenizer that {pte.name} was exported with: its sha256 is {found[:12]}…, "
            f"{pte.with_suffix('.json').name} says {wanted:.12}…: give the right one with --tokenizer"
        )
