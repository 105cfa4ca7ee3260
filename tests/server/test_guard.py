"""Before the application: bodies of any size, speed and content, other sites' pages, and keys."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.fake import FakeConversation, fake_model, running
from tests.server.running import HTTP

PATH = "/v1/chat/completions"
GOOD = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(fake_model([FakeConversation()]), max_body_bytes=2000, body_seconds=0.5) as found:
        yield found


def said(answer: httpx.Response, status: int, sentence: str) -> None:
    error = answer.json()["error"]
    assert answer.status_code == status and sentence in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def raw(url: str, text: bytes) -> bytes:
    """What comes back for bytes that are sent as they are, until the server closes."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(text)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def head(length: int | None, host: str = "localhost") -> bytes:
    kind = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    lines = (f"POST {PATH} HTTP/1.1".encode(), f"Host: {host}".encode(), b"Content-Type: application/json", kind)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def test_a_body_too_large(url: str) -> None:
    said(HTTP.post(url + PATH, content=b" " * 2001, headers=JSON), 413, "the body is larger than 2000 bytes")
    assert b" 413 " in raw(url, head(10**12))  # before any of it is sent
    assert b" 413 " in raw(url, head(None) + b"7d1\r\n" + b" " * 2001 + b"\r\n0\r\n\r\n")
    assert HTTP.post(url + PATH, content=GOOD + b" " * 1900, headers=JSON).status_code == 200


def test_a_client_that_sends_on_is_answered(url: str) -> None:
    """Though it reads nothing before all of its body is sent."""
    body = b" " * 20_000_000
    assert b" 413 " in raw(url, head(len(body)) + body)
    assert b" 403 " in raw(url, head(len(body), "evil.example") + body)
    piece = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
    assert b" 413 " in raw(url, head(None) + 200 * piece + b"0\r\n\r\n")


def test_a_body_too_slow(url: str) -> None:
    answer = raw(url, head(100) + b"{")
    assert b" 408 " in answer and b"the body did not come within 0.5 s" in answer


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{" * 1900, b"[" * 1900, b"NaN", b'{"messages": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": true}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}',
    ],
)  # fmt: skip
def test_garbage(url: str, body: bytes) -> None:
    answer = HTTP.post(url + PATH, content=body, headers=JSON)
    said(answer, 404 if b"model" in body else 400, "")


def test_what_is_no_http(url: str) -> None:
    assert b" 400 " in raw(url, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert HTTP.get(url + "/health").json()["status"] == "ok"


def test_forms_of_other_sites(url: str) -> None:
    """A page can send a form anywhere, and cannot say that it is JSON."""
    said(HTTP.post(url + PATH, content=GOOD, headers={"Content-Type": "text/plain"}), 400, "sent as application/json")
    assert b" 403 " in raw(url, head(len(GOOD), "evil.example") + GOOD)
    for name in ("localhost:1", "127.0.0.1:8000", "[::1]"):
        assert b" 200 " in raw(
            url, head(len(GOOD), name).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + GOOD
        )


def test_paths_and_methods(url: str) -> None:
    said(HTTP.get(url + "/v1/nothing"), 404, "there is no /v1/nothing here")
    said(HTTP.get(url + PATH), 405, f"GET {PATH} is not possible here")


def test_keys() -> None:
    with running(fake_model([FakeConversation()]), api_keys=("secret",)) as url:

        def get(path: str, authorization: str | None = None) -> httpx.Response:
            return HTTP.get(url + path, headers={"Authorization": authorization} if authorization else {})

        for wrong in (None, "Bearer", "Bearer secre", "Bearer secrets", "Basic secret", "secret"):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                said(get(path, wrong), 401, "Authorization: Bearer KEY")
        assert get("/v1/models", "Bearer secret").status_code == get("/v1/models", "bearer secret").status_code == 200
        assert get("/health").status_code == 200


def test_unknown_fields_and_a_model_unnamed(url: str) -> None:
    body: dict[str, Any] = json.loads(GOOD) | {"store": True, "metadata": {"a": 1}, "user": "me", "unheard_of": []}
    answer = HTTP.post(url + PATH, json=body).json()
    assert answer["model"] == "fake" and answer["choices"][0]["message"]["content"] == "word word word word "
