"""Server-sent events of an answer that is still being written, with what waits for a slow reader bounded."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from checkpoints.errors import BadInput
from export.server.answering import Desk, unless_gone
from export.server.errors import Refused, bug, from_bad_input
from export.server.settings import Settings

DONE = "data: [DONE]\n\n"
COMMENT = ": nothing new\n\n"  # readers of events skip it
log = logging.getLogger(__name__)


class Outbox:
    """Events between who writes them and who sends them. Full, it fails: an answer must not wait for its reader."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.size = most_bytes, 0
        self.failed: Refused | None = None
        self.ended = False
        self._events: deque[str] = deque()
        self._news = asyncio.Event()

    def push(self, event: dict[str, Any]) -> None:
        """Add an event; Refused where the reader is too far behind."""
        self.push_text(f"data: {json.dumps(event, allow_nan=False)}\n\n")

    def push_text(self, text: str) -> None:
        if self.size + len(text) > self.most_bytes:
            raise Refused(408, f"{self.size} bytes of the answer wait to be read: it was ended", code="slow_reader")
        self.size += len(text)
        self._events.append(text)
        self._news.set()

    def end(self, failed: Refused | None = None) -> None:
        """No more will come."""
        self.ended, self.failed = True, failed
        self._news.set()

    async def wait(self) -> None:
        """Until there are events, or the end."""
        while not self._events and not self.ended:
            self._news.clear()
            await self._news.wait()

    def take(self) -> str:
        """All events there are, as text; "" where there are none."""
        text = "".join(self._events)
        self._events.clear()
        self.size = 0
        return text


class EventStream(StreamingResponse):
    """Ends the task that writes when the client leaves."""

    media_type = "text/event-stream"
    writer: asyncio.Task[None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.writer.cancel()


async def stream(
    desk: Desk,
    settings: Settings,
    request: Request,
    write: Callable[[Callable[[dict[str, Any]], None]], Coroutine[Any, Any, None]],
) -> EventStream:
    """The response to a request that streams; `write` gets a function that sends an event.

    What goes wrong before the first event has its own status. Later it is the last event. A client that waits long
    gets a comment, so that nobody on the way thinks the connection dead.
    """
    outbox = Outbox(settings.max_stream_bytes)
    writer = desk.start(_fill(outbox, write))
    try:
        async with asyncio.timeout(settings.first_event_seconds):
            await unless_gone(desk, request, outbox.wait())
        if outbox.failed and not outbox.size:
            raise outbox.failed
    except TimeoutError:
        pass  # the first event is a comment
    except BaseException:
        writer.cancel()
        raise
    found = EventStream(_events(outbox, settings.first_event_seconds), headers={"Cache-Control": "no-cache"})
    found.writer = writer
    return found


async def _events(outbox: Outbox, seconds: float) -> AsyncIterator[str]:
    while not outbox.ended or outbox.size:
        yield outbox.take() or COMMENT
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await outbox.wait()
    if outbox.failed:
        yield f"data: {json.dumps(outbox.failed.body())}\n\n"


async def _fill(
    outbox: Outbox, write: Callable[[Callable[[dict[str, Any]], None]], Coroutine[Any, Any, None]]
) -> None:
    try:
        await write(outbox.push)
        outbox.push_text(DONE)
    except Refused as refused:
        outbox.end(refused)
    except BadInput as problem:
        outbox.end(from_bad_input(problem))
    except Exception:
        log.exception("a stream failed")
        outbox.end(bug())
    else:
        outbox.end()
