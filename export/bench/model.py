"""What lies beside a `.pte`: the facts of its manifest, and whether a tokenizer is the one it was exported with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints.errors import BadInput
from export.bench.contract import MEDIA, MODES
from export.bench.files import local_file
from export.manifest import read_manifest
from export.media.settings import AudioSettings, ImageSettings, MediaFacts


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


def modes_of(pte: Path) -> tuple[str, ...]:
    """The modes of a `.pte`, by the manifest beside it; text alone where that does not tell."""
    facts = _media(pte)
    parts = {"text": True, "vision": facts.image is not None, "speech": facts.audio is not None}
    return tuple(mode for mode in MODES if parts[mode])


def media_tokens(pte: Path, modes: Sequence[str]) -> dict[str, int]:
    """How many tokens the standard picture and sound are, where the manifest beside a `.pte` tells.

    BadInput for a mode that the manifest says the file has not.
    """
    from export.media.pictures import tile
    from export.media.sounds import frames, tokens

    found = {}
    facts, known = _media(pte), modes_of(pte)
    for mode in modes:
        if mode not in known and read_manifest(pte) is not None:
            raise BadInput(f"--modes {mode}: {pte} has the modes {', '.join(known)}")
        if mode == "vision" and facts.image is not None:
            found[mode] = tile(MEDIA["width"], MEDIA["height"], facts.image).tokens
        if mode == "speech" and facts.audio is not None:
            found[mode] = tokens(
                frames(round(MEDIA["seconds"] * facts.audio.rate), facts.audio.rate, facts.audio), facts.audio
            )
    return found


def _media(pte: Path) -> MediaFacts:
    """By the manifest beside a `.pte`; older ones, and those of text models, say nothing."""
    media = (read_manifest(pte) or {}).get("media") or {}
    try:
        image, audio = media.get("image"), media.get("audio")
        return MediaFacts(
            image=image and ImageSettings(**image), image_id=image and media["image_id"],
            audio=audio and AudioSettings(**audio), audio_id=audio and media["audio_id"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as problem:
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
