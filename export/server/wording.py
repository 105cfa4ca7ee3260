"""Parts of OpenAI's answers that both ways of asking share."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from export.engine.conversation import Reply
from export.server.models import Model

FINISH = {"context": "length", "cancelled": "stop"}  # the engine's word -> OpenAI's, where it is another
LEAST_LOGPROB = -9999.0  # OpenAI's for none at all: JSON has no infinity


def head(model: Model, kind: str, prefix: str) -> dict[str, Any]:
    """The first fields of an answer, and of every event of one that streams."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.fingerprint,
    }


def usage(replies: Sequence[Reply], each_prompt: int) -> dict[str, Any]:
    """Tokens of a request whose first of every `each_prompt` replies is the first to a prompt, which counts once."""
    first = replies[::each_prompt]
    asked, answered = sum(reply.prompt_tokens for reply in first), sum(reply.new_tokens for reply in replies)
    cached = sum(reply.prompt_tokens - reply.fed_tokens for reply in first)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {
            "cached_tokens": cached,
            "audio_tokens": _media_tokens(first, "audio"),
            "image_tokens": _media_tokens(first, "image"),
        },
    }


def _media_tokens(replies: Sequence[Reply], kind: str) -> int:
    return sum(one.tokens for reply in replies for one in reply.media if one.kind == kind)


def finish(reply: Reply) -> str:
    return FINISH.get(reply.end, reply.end)


def logprob(value: float) -> float | None:
    """For JSON; None for the first token of an echoed prompt, which nothing stands before."""
    return None if math.isnan(value) else max(float(value), LEAST_LOGPROB)
