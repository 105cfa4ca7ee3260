"""What an app says of a repeat, and the result it leaves: the same for Android and iOS."""

from __future__ import annotations

from typing import Any

from checkpoints.errors import BadInput
from export.bench.files import Local
from export.bench.plan import Plan
from export.bench.results import result
from export.bench.results.result import Document

STEPS = ("started", "loading", "loaded", "warmup", "repeat")  # events that a time-out counts from


def repeat_line(event: dict[str, Any], plan: Plan) -> str:
    """A `repeat` event for people."""

    def rate(key: str) -> str:
        value = event.get(key)
        return f"{value:,.1f}" if isinstance(value, int | float) else "?"

    at, heat = event.get("configuration", 0), event.get("thermal")
    length = plan.prompt_tokens[at] if at in range(len(plan.prompt_tokens)) else "?"
    hot = f", hot ({heat})" if heat in result.HOT else ""
    return (
        f"{length} tokens, repeat {event.get('repeat', 0) + 1} of {plan.repeats}: prefill "
        f"{rate('prefill_tokens_per_s')}, decode {rate('decode_tokens_per_s')} tokens/s{hot}"
    )


def whole(text: str, plan: Plan, device: str, file: str) -> Document:
    """The result of a run that is done; BadInput where it is none, or lacks repeats."""
    document = result.parse(text, f"{device}: {file}")
    wanted, found = plan.repeats * len(plan.prompt_tokens), result.count_repeats(document)
    if document["status"] != "complete" or found != wanted:
        raise BadInput(f"{device}: {file} is {document['status']} and has {found} repeats, {wanted} were asked for")
    return document


def completed(document: Document, plan: Plan, file: Local, serial: str) -> Document:
    """With what the app could not know."""
    model = document["model"]
    facts = model["manifest"] or result.manifest_facts(plan.pte)
    return document | {
        "device": document["device"] | {"serial": serial},
        "model": model | {"manifest": facts, "sha256": model["sha256"] or file.sha256},
    }
