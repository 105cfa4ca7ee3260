"""What a file's base model is on the hub, its licence and its languages; told by somebody, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants

from checkpoints.hub import TIMEOUT, reason
from checkpoints.model_card import Facts, card_facts


@dataclass(frozen=True)
class Origin:
    """What is known of a base model; None where nobody says it."""

    base_model: str | None  # a hub id
    license: str | None  # as the hub calls it
    license_source: str | None  # who says so, for a sentence
    license_name: str | None
    license_link: str | None
    language: str | list[str] | None
    pipeline_tag: str | None
    notes: tuple[str, ...]  # sentences on what could not be found out


def find_origin(manifest: Mapping[str, Any], license: str | None, base_model: str | None) -> Origin:
    """By the flags, else by the checkpoint's own card: the manifest has it, for a checkpoint of the hub the hub."""
    checkpoint, record = manifest["checkpoint"], manifest.get("calibration")
    name, revision, of_hub = checkpoint["name"], checkpoint["revision"], checkpoint["kind"] == "hub"
    if record and checkpoint["kind"] == "folder":  # a kept checkpoint: its original, which has a revision on the hub
        original, _, commit = record["checkpoint"]["name"].partition(" + ")[0].partition("@")
        name, revision, of_hub = (original, commit, True) if commit else (name, revision, False)
    repo = "/".join(name.removeprefix("hf:").split("/")[:2])
    facts: Facts = checkpoint.get("card") or {}
    notes: list[str] = []
    if of_hub and "license" not in facts and license is None:
        facts, problem = _ask(repo, revision)
        notes += [f"the hub was asked for the card of {repo}: {problem}"] if problem else []
    told = license or _word(facts.get("license"))
    source = "as the publisher says" if license else "as the checkpoint's own card says" if told else None
    if told is None:
        notes.append(f"nobody says the licence of {name}: --license ID does")
    own = license is None
    return Origin(
        base_model or (repo if of_hub else _word(facts.get("base_model"))),
        told,
        source,
        _word(facts.get("license_name")) if own else None,
        _link(facts.get("license_link"), repo if of_hub else None, revision) if own else None,
        facts.get("language"),
        _word(facts.get("pipeline_tag")),
        tuple(notes),
    )


def _ask(repo: str, revision: str | None) -> tuple[Facts, str | None]:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
    except Exception as problem:  # of whichever HTTP library; told as a note
        return {}, reason(problem)
    return card_facts(info.card_data.to_dict() if info.card_data else {}), None


def _link(link: Any, repo: str | None, revision: str | None) -> str | None:
    """A link to a licence; one that is relative is the base model's repository's."""
    if not isinstance(link, str) or "://" in link:
        return link if isinstance(link, str) else None
    return f"{constants.ENDPOINT}/{repo}/blob/{revision or 'main'}/{link}" if repo else None


def _word(value: Any) -> str | None:
    """A text, or the only one of a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None
