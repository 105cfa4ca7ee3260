"""Stands before the page: asks for a key where the server has keys, lets nothing in from elsewhere.

Of Gradio only those paths are let through that the page needs, so that what else it can do (open files, fetch from
other hosts …) is not at hand for anybody. Files are taken where a model takes pictures or sound, see `uploads`.
"""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.server.errors import Refused, response
from export.server.guard import replaying
from export.server.settings import Settings
from export.server.uploads import is_upload, make_room, only_uploads

COOKIE = "pocketphi"
PATHS = {"/", "/config", "/theme.css", "/manifest.json", "/favicon.ico"}
FOLDERS = (
    "/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/run/", "/gradio_api/heartbeat/",
    "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/startup-events", "/gradio_api/info", "/gradio_api/config",
)  # fmt: skip
UPLOAD, FILE = "/gradio_api/upload", "/gradio_api/file="
UPLOADS = (UPLOAD, "/gradio_api/upload_progress")
# Answers are Markdown with HTML in it: a picture of another host would tell it that the answer is read.
POLICY = "; ".join(
    (
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "media-src 'self' data: blob:",
        "font-src 'self' data:", "worker-src 'self' blob:", "object-src 'none'",
        "frame-src 'none'", "frame-ancestors 'self'", "base-uri 'self'", "form-action 'self'",
    )
)  # fmt: skip
FILE_POLICY = "default-src 'none'; sandbox"  # of what somebody has put here
HEADERS = {
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

    def __init__(self, app: ASGIApp, settings: Settings, media: bool) -> None:
        self.app, self.settings, self.media = app, settings, media

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        policy = FILE_POLICY if request.scope["path"].startswith(FILE) else POLICY
        send = _with_headers(send, HEADERS | {"Content-Security-Policy": policy})
        try:
            answer = await self._answer(request)
            if answer is None and request.method == "POST":
                body = await self._body(request)
                scope["headers"] = [*_without_length(scope["headers"]), (b"content-length", b"%d" % len(body))]
                receive = replaying(body, receive)
        except Refused as refused:
            answer = response(refused)
        await (answer or self.app)(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """None where the page is to answer."""
        path = request.scope["path"]
        keys = self.settings.api_keys
        if keys and path == "/login":
            return await self._log_in(request) if request.method == "POST" else RedirectResponse("./", 303)
        if not self._has(path):
            raise Refused(404, f"there is no {path} here", code="not_found")
        if keys and not self._known(request):
            if path == "/" and request.method == "GET":
                return HTMLResponse(FORM.replace("PROBLEM", ""), 401)
            raise Refused(401, "log in first, with an API key of this server", code="invalid_api_key")
        if request.method == "POST":
            self._check_origin(request.headers)
        return None

    def _has(self, path: str) -> bool:
        if path.startswith(FILE):
            return self.media and is_upload(path.removeprefix(FILE))
        return path in PATHS or path.startswith(FOLDERS) or (self.media and path in UPLOADS)

    async def _body(self, request: Request) -> bytes:
        """What Gradio is to get."""
        body = await request.body()
        if request.scope["path"] != UPLOAD:
            return await asyncio.to_thread(only_uploads, body)
        await asyncio.to_thread(make_room, len(body))
        return body

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


def _without_length(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name not in (b"content-length", b"transfer-encoding")]


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sent
