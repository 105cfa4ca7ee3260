"""Stands before the page: asks for a key where the server has keys, takes text only, lets nothing in from elsewhere.

Of Gradio only those paths are let through that the page needs, so that what else it can do (take files, fetch from
other hosts …) is not at hand for anybody.
"""

from __future__ import annotations

import hmac
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.server.errors import Refused, response
from export.server.guard import replaying
from export.server.settings import Settings

COOKIE = "pocketphi"
PATHS = {"/", "/config", "/theme.css", "/manifest.json", "/favicon.ico"}
FOLDERS = (
    "/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/run/", "/gradio_api/heartbeat/",
    "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/startup-events", "/gradio_api/info", "/gradio_api/config",
)  # fmt: skip
NO_TEXT = {"component", "path"}  # keys of what Gradio would build or open
# Answers are Markdown with HTML in it: a picture of another host would tell it that the answer is read.
POLICY = "; ".join(
    (
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "font-src 'self' data:", "worker-src 'self' blob:", "object-src 'none'",
        "frame-src 'none'", "frame-ancestors 'self'", "base-uri 'self'", "form-action 'self'",
    )
)  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FORM = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pocketphi</title>
<style>
:root { color-scheme: light dark; font: 16px system-ui, sans-serif }
body { display: grid; place-items: center; min-height: 90vh; margin: 0 }
form { display: grid; gap: 0.8rem; width: min(20rem, 85vw) }
h1 { margin: 0; font-size: 1.4rem }
input, button { font: inherit; padding: 0.6rem }
p { margin: 0; color: light-dark(#b00020, #ff8a80) }
</style>
<form method="post" action="login">
<h1>Pocketphi</h1>
<label for="key">API key of this server</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button>
PROBLEM
</form></html>
"""


class Login:
    """An ASGI application before that of the page."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except Refused as refused:
            answer = response(refused)
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
            return
        if request.method == "POST":  # its body has been read
            receive = replaying(await request.body(), receive)
        await self.app(scope, receive, _with_headers(send))

    async def _answer(self, request: Request) -> Response | None:
        """None where the page is to answer."""
        path = request.scope["path"]
        keys = self.settings.api_keys
        if keys and path == "/login":
            return await self._log_in(request) if request.method == "POST" else RedirectResponse("./", 303)
        if path not in PATHS and not path.startswith(FOLDERS):
            raise Refused(404, f"there is no {path} here", code="not_found")
        if keys and not self._known(request):
            if path == "/" and request.method == "GET":
                return HTMLResponse(FORM.replace("PROBLEM", ""), 401)
            raise Refused(401, "log in first, with an API key of this server", code="invalid_api_key")
        if request.method == "POST":
            self._check_origin(request.headers)
            _check_text(await request.body())
        return None

    async def _log_in(self, request: Request) -> Response:
        given = parse_qs((await request.body()).decode(errors="replace")).get("key", [""])[0].strip().encode()
        # All are compared, so that the time tells nothing.
        found = [key for key in self.settings.api_keys if hmac.compare_digest(given, key.encode())]
        if not found:
            return HTMLResponse(FORM.replace("PROBLEM", '<p role="alert">This is no key of the server.</p>'), 401)
        answer = RedirectResponse("./", 303)
        answer.set_cookie(
            COOKIE, token(found[0]), httponly=True, samesite="lax", secure=request.url.scheme == "https"
        )
        return answer

    def _known(self, request: Request) -> bool:
        given = request.cookies.get(COOKIE, "").encode()
        return any([hmac.compare_digest(given, token(key).encode()) for key in self.settings.api_keys])

    def _check_origin(self, headers: Headers) -> None:
        # With keys no other site has the cookie; without, its pages could have ours answer.
        origin = headers.get("origin")
        if not self.settings.api_keys and origin and urlsplit(origin).netloc != headers.get("host"):
            raise Refused(403, f"the page of {origin:.200} cannot ask here", code="wrong_origin")


def token(key: str) -> str:
    """What a browser keeps that has told a key: good as long as the server has it, and not the key."""
    return hmac.digest(key.encode(), b"the page", "sha256").hex()


def _check_text(body: bytes) -> None:
    try:
        found = json.loads(body or b"null")
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON", code="invalid_json") from None
    left: list[Any] = [found]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if strange := NO_TEXT & one.keys():
                raise Refused(400, f"the page takes text, and no {strange.pop()}", code="unsupported_content")
            left += one.values()
        elif isinstance(one, list):
            left += one


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sent
