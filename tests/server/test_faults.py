"""Clients that leave, wait, read slowly or come by the thousand; servers that are stopped. Nobody else notices."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.fake import FakeConversation, fake_model, running
from tests.server.running import HTTP, serving

PATH = "/v1/chat/completions"


def asked(content: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    lines = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return (lines + f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n").encode() + data


def connect(url: str, body: dict[str, Any], receive_buffer: int | None = None) -> socket.socket:
    """A connection on which a request has been sent."""
    address = httpx.URL(url)
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(20)
    connection.connect((address.host, address.port))
    connection.sendall(request(body))
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def health(url: str) -> dict[str, Any]:
    return HTTP.get(f"{url}/health").json()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_leaves(stream: bool) -> None:
    """Before the first token, as while the prompt is read: its conversation is free for the next."""
    conversation = FakeConversation()
    conversation.gate.clear()
    with running(fake_model([conversation])) as url:
        with closing(connect(url, asked(stream=stream))):
            until(lambda: conversation.asked)
        until(lambda: conversation.ended == ["cancelled"] and not health(url)["running"]["fake"])
        conversation.gate.set()
        assert HTTP.post(url + PATH, json=asked()).status_code == 200


def test_a_client_leaves_in_the_middle() -> None:
    conversation = FakeConversation(words=100_000, pause=0.01)
    with running(fake_model([conversation])) as url:
        with closing(connect(url, asked(stream=True))) as connection:
            until(lambda: b"word" in connection.recv(4096))
        until(lambda: conversation.ended == ["cancelled"] and not health(url)["running"]["fake"])


def test_a_client_leaves_the_queue() -> None:
    conversation = FakeConversation()
    conversation.gate.clear()
    with running(fake_model([conversation])) as url:
        with closing(connect(url, asked("first"))) as first:
            until(lambda: conversation.asked)
            with closing(connect(url, asked("second"))):
                until(lambda: health(url)["waiting"]["fake"] == 1)
            until(lambda: health(url)["waiting"]["fake"] == 0)
            conversation.gate.set()
            assert b" 200 " in rest(first)
        assert [messages[0]["content"] for messages in conversation.asked] == ["first"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client learns that it did, the log why, and the next request is answered."""
    conversation = FakeConversation()
    failure = conversation.raises = RuntimeError("a secret of the engine")
    logged, handler = list[logging.LogRecord](), logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with running(fake_model([conversation])) as url:
        answer = HTTP.post(url + PATH, json=asked(stream=stream))
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        until(lambda: any(record.exc_info and record.exc_info[1] is failure for record in logged))
        conversation.raises = None
        assert HTTP.post(url + PATH, json=asked(stream=stream)).status_code == 200


def test_a_thousand() -> None:
    """Each is answered or sent away, at once and told when to come back; none is lost, nobody gets another's."""
    conversations = [FakeConversation(words=1), FakeConversation(words=1)]
    for conversation in conversations:
        conversation.gate.clear()
    model = fake_model(conversations, most_waiting=300)

    async def ask(url: httpx.URL, at: int) -> str:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(request(asked(str(at))))
        answer = (await reader.read()).decode()
        writer.close()
        return answer

    async def all_at_once(url: str) -> list[str]:
        tasks = [asyncio.create_task(ask(httpx.URL(url), at)) for at in range(1000)]
        while sum(task.done() for task in tasks) < 698:
            await asyncio.sleep(0.01)
        for conversation in conversations:
            conversation.gate.set()
        return list(await asyncio.gather(*tasks))

    with running(model) as url:
        answers = asyncio.run(all_at_once(url))
        assert health(url)["running"] == health(url)["waiting"] == {"fake": 0}
    assert Counter(answer.split()[1] for answer in answers) == {"200": 302, "429": 698}
    served = {int(messages[0]["content"]) for conversation in conversations for messages in conversation.asked}
    assert served == {at for at, answer in enumerate(answers) if answer.split()[1] == "200"}
    for answer in answers:
        if answer.split()[1] == "429":
            assert re.search("retry-after: [1-9]", answer) and '"code": "queue_full"' in answer


def test_a_slow_reader() -> None:
    """It holds neither its conversation nor the others; what waits for it is bounded, and then its answer ends."""
    conversation = FakeConversation(words=20_000, word="w" * 1000)
    with running(fake_model([conversation]), max_stream_bytes=100_000) as url:
        with closing(connect(url, asked(stream=True), receive_buffer=4096)) as slow:
            until(lambda: conversation.ended == ["cancelled"])
            conversation.words = 4
            assert HTTP.post(url + PATH, json=asked()).status_code == 200
            text = rest(slow)
        events = re.findall(rb"data: (\{.*\})\n", text)
        assert json.loads(events[-1])["error"]["code"] == "slow_reader" and b"[DONE]" not in text
        assert len(events) > 10


def test_a_stream_that_waits_is_kept_alive() -> None:
    conversation = FakeConversation()
    conversation.gate.clear()
    with (
        running(fake_model([conversation]), first_event_seconds=0.05) as url,
        HTTP.stream("POST", url + PATH, json=asked(stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith(": ") and not next(lines) and next(lines).startswith(": ")
        conversation.gate.set()
        assert [line for line in lines if line.startswith("data")][-1] == "data: [DONE]"


def test_stopping_tells_who_waits() -> None:
    conversation = FakeConversation(words=100_000, pause=0.01)
    with running(fake_model([conversation])) as url:
        running_one, waiting = connect(url, asked(stream=True)), connect(url, asked())
        until(lambda: health(url)["waiting"]["fake"] == 1)
    with closing(running_one), closing(waiting):
        assert b" 503 " in rest(waiting)
        assert b'"code": "stopping"' in rest(running_one)
    assert conversation.ended == ["cancelled"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_server_ends_and_starts_again(served_pte: Path, packed: Path, number: int, code: int) -> None:
    """In the middle of an answer, and at the same port."""
    with serving(served_pte, "--packed", packed) as server:
        port = server.url.rpartition(":")[2]
        with closing(connect(server.url, asked(n=16, temperature=2, stream=True))) as connection:
            assert b" 200 " in connection.recv(4096)
            assert server.end(number) == code
    if code < 0:
        with serving(served_pte, "--packed", packed, "--port", port) as again:
            assert again.client.chat.completions.create(model="tiny", **asked(temperature=0)).choices
            assert "Traceback" not in "".join(again.lines)
