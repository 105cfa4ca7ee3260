"""A turn on the page: what stands there as a request, and its answer as messages with a note of how it went.

A note is a message with a title, which the page shows folded. The model never reads notes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from inspect import cleandoc
from typing import Any

from pydantic import ValidationError

from checkpoints.errors import BadInput
from export.engine.conversation import Conversation, Piece, Reply
from export.server.answering import Desk, Job, Work, answer
from export.server.chat import make_job
from export.server.errors import Refused, bug
from export.server.metrics import decode_rate, memory_bytes
from export.server.models import Models, find_model
from export.server.requests import ChatRequest

Shown = dict[str, Any]  # a message as Gradio has it: role, content, metadata
log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5  # a turn that waits says so as often: only then Gradio sees that its browser has left
ENDS = {"length": "ended at max tokens", "context": "ended by the full context"}


async def turn(
    models: Models, desk: Desk, client: Hashable, messages: list[dict[str, Any]], asked: dict[str, Any]
) -> AsyncGenerator[list[Shown], None]:
    """The answer to messages as far as it is, again and again, with a note; also of what went wrong.

    `asked` are other fields of a `ChatRequest`. Closed, it ends the answer in the engine.
    """

    def make() -> Job:
        request = ChatRequest.model_validate(asked | {"messages": messages})
        return make_job(find_model(models, request.model), request, client)

    shown = list[Shown]()
    try:
        async with aclosing(_follow(desk, await asyncio.to_thread(make))) as answers:
            async for shown in answers:
                yield shown
    except (Refused, BadInput, ValidationError) as problem:
        yield [*shown[:-1], note(f"Not answered: {_sentence(problem)}")]
    except Exception:
        log.exception("a turn on the page failed")
        yield [*shown[:-1], note(f"Not answered: {bug()}")]


async def _follow(desk: Desk, job: Job) -> AsyncGenerator[list[Shown], None]:
    begun, news = threading.Event(), asyncio.Event()
    texts, replies, first = list[str](), list[Reply](), list[float]()

    def told(choice: int, what: Piece | Reply) -> None:
        if isinstance(what, Reply):
            replies.append(what)
            return
        if not first:
            first.append(time.monotonic() - job.arrived)
        texts.append(what.text)
        news.set()

    task = desk.start(answer(desk, replace(job, work=[_announced(one, begun) for one in job.work]), told))
    task.add_done_callback(lambda done: news.set())
    try:
        while not task.done():
            news.clear()
            yield said("".join(texts), pending(_state(job, begun, first)))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await news.wait()
        task.result()
        yield said("".join(texts), note(*_account(replies[-1], first)))
    finally:
        task.cancel()


def _announced(work: Work, begun: threading.Event) -> Work:
    def run(conversation: Conversation, on_piece: Callable[[Piece], object]) -> Reply:
        begun.set()
        return work(conversation, on_piece)

    return run


def _state(job: Job, begun: threading.Event, first: Sequence[float]) -> str:
    if first:
        return f"first token after {first[0]:.2f} s"
    if begun.is_set():
        return f"reading {len(job.ids)} tokens"
    waiting = job.model.slots.waiting
    return f"waiting for a turn, {waiting} in the queue" if waiting else "beginning"


def _account(reply: Reply, first: Sequence[float]) -> tuple[str, str]:
    """In a line, and in a list."""
    private, shared = memory_bytes()
    rate = decode_rate(reply)
    cached = reply.prompt_tokens - reply.fed_tokens
    line = [
        *([ENDS[reply.end]] if reply.end in ENDS else []),
        *([f"{rate:.1f} tokens/s"] if rate else []),
        *([f"first token after {first[0]:.2f} s"] if first else ["no text"]),
        f"{cached} of {reply.prompt_tokens} prompt tokens from the cache",
        f"memory {(private + shared) / 1e6:.0f} MB",
    ]
    rows = [
        f"{reply.new_tokens} tokens of answer in {(reply.first_token_ms + reply.decode_ms) / 1000:.2f} s",
        f"{reply.fed_tokens} tokens of prompt read in {reply.prefill_ms / 1000:.2f} s",
        f"memory of the server: {private / 1e6:.0f} MB of its own, {shared / 1e6:.0f} MB of files (mapped weights)",
    ]
    return " · ".join(line), "\n".join(f"- {row}" for row in rows)


# ---- what the page shows and what the model reads


def note(title: str, text: str = "") -> Shown:
    """A line under an answer; the text is folded."""
    return _message(text, {"title": title, "status": "done"})


def pending(title: str) -> Shown:
    """A line under an answer that is not at its end."""
    return _message("", {"title": title, "status": "pending"})


def said(text: str, under: Shown) -> list[Shown]:
    return [_message(text), under] if text else [under]


def _message(text: str, metadata: dict[str, str] | None = None) -> Shown:
    # Gradio would take the margin from a bare string.
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "metadata": metadata or {}}


def stopped(history: list[Shown]) -> list[Shown]:
    """A history whose last note does not wait for anything any more."""
    last = (history[-1].get("metadata") or {}) if history else {}
    if last.get("status") != "pending":
        return history
    told = f"stopped · {last['title']}" if len(history) > 1 and history[-2]["role"] == "assistant" else "stopped"
    return [*history[:-1], note(told)]


def messages_of(history: Sequence[Shown], text: str, system: str) -> list[dict[str, Any]]:
    """What the model is to read for a new question: no notes, and no question that was not answered."""
    turns = [
        {"role": one["role"], "content": "".join(part.get("text", "") for part in one["content"])}
        for one in history
        if not (one.get("metadata") or {}).get("title")
    ]
    # Gradio shows a question without its margin and hands it back so in the next turn.
    turns.append({"role": "user", "content": cleandoc(text)})
    following = [one["role"] for one in turns[1:]] + [""]
    kept = [one for one, after in zip(turns, following, strict=True) if not one["role"] == after == "user"]
    return [{"role": "system", "content": system}, *kept] if system.strip() else kept


def _sentence(problem: Exception) -> str:
    if isinstance(problem, ValidationError):
        first = problem.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(problem).split())
