"""Stands before the application: who may ask at all, and bodies of a bounded size that come in a bounded time.

Plain ASGI, as Starlette's middleware with `request` hides from what is behind it that a client has left.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.server.errors import Refused, response
from export.server.held import Budget, Hold
from export.server.settings import Settings

GUARDED = ("/v1/", "/metrics")  # what a key is asked for
MEDIA = ("/v1/chat/completions", "/gradio_api/upload")  # where pictures and sound come in
COPIES = 2  # of a body, until its request ends: as it came, and as what was read of it
BYTES_A_VALUE = 8
LINGER_SECONDS, PAUSE_SECONDS = 20.0, 1.0  # for the rest of a body that is refused, and between two pieces of it
OWN_NAMES = {"localhost", "127.0.0.1", "::1"}


class Guard:
    """An ASGI application before another; with `media`, bodies of pictures and sound are let through."""

    def __init__(self, app: ASGIApp, settings: Settings, budget: Budget, media: bool) -> None:
        self.app, self.settings, self.budget, self.media = app, settings, budget, media

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self.budget.hold() as hold:
            scope["hold"] = hold
            await self._guarded(scope, receive, send, hold)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, hold: Hold) -> None:
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_host(headers.get("host", ""))
            self._check_key(scope, headers.get("authorization", ""))
            body = await self._body(scope["path"], headers.get("content-length", "0"), receive, hold)
        except Refused as refused:
            answer = response(refused)
            answer.headers["connection"] = "close"
            hold.end()
            await answer(scope, receive, lingering(receive, send))
            return
        if body is not None:
            await self.app(scope, replaying(body, receive), send)

    def _check_host(self, host: str) -> None:
        # A page of another site can make its own name lead to 127.0.0.1; its browser still says that name.
        if not self.settings.loopback or self.settings.api_keys:
            return
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = host
        if name not in OWN_NAMES | {self.settings.host}:
            names = ", ".join(sorted(OWN_NAMES))
            raise Refused(403, f"the server is called {names} and not {host!r:.80}", code="wrong_host")

    def _check_key(self, scope: Scope, authorization: str) -> None:
        scope["client_key"] = None
        if not self.settings.api_keys or not scope["path"].startswith(GUARDED):
            return
        kind, _, key = authorization.partition(" ")
        given = key.strip().encode()
        # All are compared, so that the time tells nothing.
        if kind.lower() != "bearer" or not any(
            [secrets.compare_digest(given, own.encode()) for own in self.settings.api_keys]
        ):
            what = "the API key is not one of this server's" if given else "an API key is needed"
            raise Refused(
                401,
                f"{what}: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope["client_key"] = given

    async def _body(self, path: str, length: str, receive: Receive, hold: Hold) -> bytes | None:
        """The whole body; None where the client has left meanwhile."""
        seconds, most = self.settings.body_seconds, self.settings.max_body_bytes
        if self.media and path.startswith(MEDIA):
            seconds, most = self.settings.media_body_seconds, self.settings.max_media_body_bytes
        too_large = Refused(413, f"the body is larger than {most} bytes", code="body_too_large")
        if length.isdecimal() and int(length) > most:
            raise too_large
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    hold.add(COPIES * len(parts[-1]))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refused(408, f"the body did not come within {seconds:g} s", code="body_timeout") from None
        body = b"".join(parts)
        if size > self.settings.max_body_bytes and path.startswith("/v1/"):
            # Each value of JSON takes many times its bytes once it is read: only what is long may be so large.
            values = sum(body.count(mark) for mark in b"[{,")
            if values > self.settings.max_body_bytes // BYTES_A_VALUE:
                what = f"the body has {values} values, which is more than pictures and sound"
                raise Refused(413, what, code="body_too_large")
        return body


def lingering(receive: Receive, send: Send) -> Send:
    """Sends an answer at once, and ends it when its client has sent its body, which nobody keeps.

    Most clients read no answer before, and one to whom the connection is closed meanwhile never sees it.
    """

    async def sent(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await asyncio.wait_for(receive(), PAUSE_SECONDS)).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return sent


def replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body at once, then what the server tells: that the client has left."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
