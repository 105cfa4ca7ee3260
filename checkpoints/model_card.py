"""What a checkpoint's own card, the README.md beside it, says of its licence, its languages and its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARD = "README.md"
FACTS = ("license", "license_name", "license_link", "language", "base_model", "pipeline_tag")

Facts = dict[str, str | list[str]]


def read_card(folder: Path) -> Facts:
    """The FACTS that the metadata of a folder's README.md state; nothing where there is none, or none to be read."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard.load(folder / CARD, ignore_metadata_errors=True)
    except Exception:  # YAML's errors are of many kinds, and an export needs no card
        return {}
    return card_facts(card.data.to_dict())


def card_facts(metadata: dict[str, Any]) -> Facts:
    """The FACTS among a card's metadata that are words or lists of words."""
    found = {name: metadata.get(name) for name in FACTS}
    return {name: value for name, value in found.items() if value and _words(value)}


def _words(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
