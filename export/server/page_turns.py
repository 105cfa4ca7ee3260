"""A turn on the page: what stands there as a request, and its answer as messages with a note of how it went."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from checkpoints.errors import BadInput
from export.engine.conversation import Conversation, EncodedMedia, Piece, Reply
from export.server.answering import Desk, Job, Work, answer
from export.server.chat import make_job
from export.server.errors import Refused, bug
from export.server.metrics import decode_rate, memory_bytes
from export.server.models import Models, find_model
from export.server.page_messages import Shown, named, note, pending, said, with_files
from export.server.requests import ChatRequest

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5  # a turn that waits says so as often: only then Gradio sees that its browser has left
ENDS = {"length": "ended at max tokens", "context": "ended by the full context"}


async def turn(
    models: Models, desk: Desk, client: Hashable, messages: list[dict[str, Any]], asked: dict[str, Any]
) -> AsyncGenerator[list[Shown], None]:
    """The answer to messages as far as it is, again and again, with a note; also of what went wrong.

    `asked` are other fields of a `ChatRequest`. Closed, it ends the answer in the engine.
    """

    shown = list[Shown]()
    try:
        with desk.budget.hold() as hold:
            sent = await asyncio.to_thread(with_files, messages, hold)
            request = ChatRequest.model_validate(asked | {"messages": sent})
            model = find_model(models, request.model)
            job = await desk.make(request, partial(make_job, model, request, client, desk.reader(hold)))
            async with aclosing(_follow(desk, job)) as answers:
                async for shown in answers:
                    yield shown
    except (Refused, BadInput, ValidationError) as problem:
        yield [*shown[:-1], note(f"Not answered: {named(_sentence(problem), messages)}")]
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
        media = sum(token < 0 for token in job.ids)
        return f"reading {len(job.ids)} tokens" + (f", {media} of them of pictures and sound" if media else "")
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
        *_encoding(reply),
        f"{cached} of {reply.prompt_tokens} prompt tokens from the cache",
        f"memory {(private + shared) / 1e6:.0f} MB",
    ]
    rows = [
        f"{reply.new_tokens} tokens of answer in {(reply.first_token_ms + reply.decode_ms) / 1000:.2f} s",
        *(_encoded(one) for one in reply.media),
        f"{reply.fed_tokens} tokens of prompt read in {reply.prefill_ms / 1000:.2f} s",
        f"memory of the server: {private / 1e6:.0f} MB of its own, {shared / 1e6:.0f} MB of files (mapped weights)",
    ]
    return " · ".join(line), "\n".join(f"- {row}" for row in rows)


def _encoding(reply: Reply) -> list[str]:
    """How long what is new of pictures and sound took."""
    new = [one for one in reply.media if not one.reused]
    kinds = {"image": "pictures", "audio": "sound"}
    what = " and ".join(word for kind, word in kinds.items() if kind in {one.kind for one in new})
    seconds = sum(one.prepare_ms + one.encode_ms for one in new) / 1000
    return [f"{what} encoded in {seconds:.2f} s"] if new else []


def _encoded(one: EncodedMedia) -> str:
    name, part = ("picture", "crop") if one.kind == "image" else ("sound", "piece")
    size = f"{name} {one.number}: {one.tokens} tokens, {one.parts} {part}{'s' if one.parts > 1 else ''}"
    if one.reused:
        return f"{size}, encoded before"
    return f"{size}, prepared in {one.prepare_ms / 1000:.2f} s, encoded in {one.encode_ms / 1000:.2f} s"


def _sentence(problem: Exception) -> str:
    if isinstance(problem, ValidationError):
        first = problem.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(problem).split())
