"""A request on its way: it waits for its turn, a thread answers it, and it ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from export.engine.conversation import Conversation, Piece, Reply
from export.server.errors import Refused
from export.server.held import Budget, Hold
from export.server.media import Reader
from export.server.metrics import Metrics
from export.server.models import Model
from export.server.remote import fetch
from export.server.requests import ChatRequest
from export.server.settings import Settings
from export.server.slots import QueueFull

T = TypeVar("T")
Told = Callable[[int, Piece | Reply], object]  # gets the number of the choice and what has become certain of it
Work = Callable[[Conversation, Callable[[Piece], object]], Reply]  # one choice, in a thread
RETRY_SECONDS = 1  # what a client that is sent away is told at least
READERS = 4  # one decodes at a time, others wait for hosts
CANCEL_SECONDS = 0.02  # between two tries: a reply that has not begun cannot be cancelled


@dataclass(frozen=True)
class Job:
    """One request: its choices are answered one after another by one conversation, which holds the prompt then."""

    model: Model
    client: Hashable
    ids: Sequence[int]  # of the prompt
    work: Sequence[Work]
    arrived: float = field(default_factory=time.monotonic)


@dataclass
class Desk:
    """What all requests share."""

    metrics: Metrics
    closing: asyncio.Event
    settings: Settings
    budget: Budget
    # Of their own, so that pictures and slow hosts keep nobody waiting who sends text.
    reading: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "reads-media"))
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that is kept until it is done."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def reader(self, hold: Hold) -> Reader:
        """What reads a request's pictures and sound."""
        settings = self.settings
        if not settings.allow_remote_media:
            return Reader(settings, hold)
        limits = partial(fetch, most_bytes=settings.max_file_bytes, seconds=settings.remote_seconds)
        return Reader(settings, hold, limits)

    async def make(self, request: ChatRequest, make: Callable[[], Job]) -> Job:
        """A job of a chat, made in a thread."""
        if not request.has_media:
            return await asyncio.to_thread(make)
        return await asyncio.get_running_loop().run_in_executor(self.reading, make)


async def answer(desk: Desk, job: Job, told: Told = lambda choice, what: None) -> list[Reply]:
    """All replies of a job; `told` is called in the event loop. Cancelled, it stops the conversation and frees it.

    Refused where the queue is full or the server stops.
    """
    task, closing = desk.start(_answer(desk, job, told)), asyncio.create_task(desk.closing.wait())
    try:
        await asyncio.wait({task, closing}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(503, "the server is stopping", code="stopping")
        return task.result()
    finally:
        closing.cancel()
        task.cancel()


async def _answer(desk: Desk, job: Job, told: Told) -> list[Reply]:
    try:
        async with job.model.slots.turn(job.client, job.ids) as number:
            return await _run(desk, job, job.model.slots.conversations[number], told)
    except QueueFull:
        waiting = job.model.slots.waiting
        raise Refused(
            429,
            f"{waiting} requests wait for {job.model.name} already: try again later",
            code="queue_full",
            headers={"Retry-After": str(RETRY_SECONDS + waiting // (4 * len(job.model.slots.conversations)))},
        ) from None


async def _run(desk: Desk, job: Job, conversation: Conversation, told: Told) -> list[Reply]:
    loop, first = asyncio.get_running_loop(), True
    later = loop.call_soon_threadsafe
    refused: asyncio.Future[Any] = loop.create_future()  # by who is told

    def tell(choice: int, what: Piece | Reply) -> None:
        nonlocal first
        if first:
            first = False
            desk.metrics.first_token.labels(job.model.name).observe(time.monotonic() - job.arrived)
        if isinstance(what, Reply):
            desk.metrics.count(job.model.name, what)
        if not refused.done():
            try:
                told(choice, what)
            except Exception as problem:
                refused.set_result(problem)

    def work() -> list[Reply]:
        replies = list[Reply]()
        for choice, one in enumerate(job.work):
            replies.append(one(conversation, lambda piece, at=choice: later(tell, at, piece)))  # type: ignore[misc]
            later(tell, choice, replies[-1])
            if replies[-1].end == "cancelled":
                break
        return replies

    running: asyncio.Future[Any] = loop.run_in_executor(job.model.threads, work)
    try:
        await asyncio.wait({running, refused}, return_when=asyncio.FIRST_COMPLETED)
        if refused.done():
            raise refused.result()
        return running.result()
    finally:
        while not running.done():
            conversation.cancel()
            await asyncio.wait({running}, timeout=CANCEL_SECONDS)
        running.exception()  # looked at, as nobody else may


async def unless_gone(desk: Desk, request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, or its end where the client leaves before; for requests whose body has been read."""
    task, gone = desk.start(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client has left", code="client_left")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
