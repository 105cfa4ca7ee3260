"""Pictures of other hosts: only where that is allowed, only of the public internet, and whatever a host answers."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from checkpoints.errors import BadInput
from export.server import answering, remote
from export.server.errors import Refused
from tests.server.fake import FakeConversation, fake_model, running
from tests.server.test_faults import until
from tests.server.test_media import MEDIA, SMALL, image, picture_file, post, user

PICTURE = picture_file(SMALL)
CUT = list[bytes]()  # answers that could not be sent to their end
Answer = Callable[[BaseHTTPRequestHandler], None]


def whole(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def raw(text: bytes, every: float = 0.0) -> Answer:
    """Bytes as they are, one after another where it takes time."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        try:
            for at in range(len(text)) if every else [slice(None)]:
                handler.wfile.write(text[at : at + 1] if isinstance(at, int) else text[at])
                handler.wfile.flush()
                time.sleep(every)
        except OSError:
            CUT.append(text)

    return answer


class Host:
    """A server of one answer for each path."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.path, dict(self.headers)))
                host.answers.get(self.path, whole(404))(self)

            def log_message(self, *said: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    found = Host()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.02,))
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def fetch(url: str, allowed: Callable[[Any], bool] = lambda address: True, seconds: float = 5.0) -> bytes:
    return remote.fetch(url, "it", most_bytes=100_000, seconds=seconds, allowed=allowed)


def test_a_picture(host: Host) -> None:
    """Also in chunks, without a length, and after redirects; asked without anybody's name or key."""
    host.answers["/a%20b.png?c=%C3%A4"] = whole(200, PICTURE)
    assert fetch(f"{host.url}/a b.png?c=ä") == PICTURE
    path, headers = host.asked[-1]
    assert path == "/a%20b.png?c=%C3%A4" and headers["Host"] == host.url.removeprefix("http://")
    assert headers.keys() == {"Host", "User-Agent", "Accept", "Accept-Encoding"}
    chunks = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    host.answers["/chunks"] = raw(b"HTTP/1.1 200 OK\r\n" + chunks)
    assert fetch(f"{host.url}/chunks") == b"abcde"
    host.answers["/open"] = raw(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert fetch(f"{host.url}/open") == b"abc"
    host.answers["/1"], host.answers["/2"] = whole(302, Location="2"), whole(301, Location=f"{host.url}/open")
    assert fetch(f"{host.url}/1") == b"abc"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (whole(404, b"secret"), "127.0.0.1 answers with status 404"),
        (whole(302), "answers with status 302"),
        (whole(302, Location="/it"), "is led on by 127.0.0.1 more than 3 times"),
        (whole(302, Location="file:///etc/passwd"), "http and https URLs are fetched"),
        (whole(302, Location="http://[/"), "has a URL that is none"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "could not be fetched from 127.0.0.1$"),
        (raw(b"no HTTP at all\r\n\r\n"), "could not be fetched from 127.0.0.1$"),
        (raw(b""), "could not be fetched from 127.0.0.1$"),
    ],
)
def test_no_picture(host: Host, answer: Answer, sentence: str) -> None:
    host.answers["/it"] = answer
    with pytest.raises(BadInput, match=sentence) as refused:
        fetch(f"{host.url}/it")
    assert "secret" not in str(refused.value)


def test_too_much_and_too_slow(host: Host) -> None:
    """What is claimed, what comes, and what drips in head or body."""
    for answer in (whole(200, bytes(100_001)), raw(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(200_000))):
        host.answers["/it"] = answer
        with pytest.raises(Refused, match="is larger than 100000 bytes") as refused:
            fetch(f"{host.url}/it")
        assert refused.value.status == 413
    for slow in (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 999, b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 999):
        host.answers["/it"] = raw(slow, 0.02)
        with pytest.raises(BadInput, match="could not be fetched from 127.0.0.1 within 0.5 s"):
            fetch(f"{host.url}/it", seconds=0.5)
        until(lambda slow=slow: CUT[-1:] == [slow])  # type: ignore[misc]  and is not waited for


@pytest.mark.parametrize(
    "url",
    ["http://name:word@127.0.0.1/", "http://", "http://127.0.0.1:0/", "http://127.0.0.1:x/", "ftp://127.0.0.1/"],
)
def test_urls(url: str) -> None:
    with pytest.raises(BadInput, match="^it "):
        fetch(url)


NOT_PUBLIC = (
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1",
    "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
    "2002:a00:1::",
    "2001:db8::1", "2001:0:7f00:1::",
)  # fmt: skip
PUBLIC = ("1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1")


def test_which_addresses_are_public() -> None:
    assert not [one for one in NOT_PUBLIC if remote.public(ipaddress.ip_address(one))]
    assert not [one for one in PUBLIC if not remote.public(ipaddress.ip_address(one))]


def test_the_own_network_is_not_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, in other spellings, by name, by a name with two addresses, and by a redirect."""
    host.asked.clear()
    port = host.server.server_port
    for name in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::ffff:127.0.0.1]"):
        with pytest.raises(BadInput, match="no host of the public internet|could not be fetched"):
            fetch(f"http://{name}:{port}/open", remote.public)
    looked = [(2, 1, 6, "", (one, port)) for one in ("8.8.8.8", "127.0.0.1")]
    with monkeypatch.context() as changed:
        changed.setattr("socket.getaddrinfo", lambda *asked, **more: looked)
        with pytest.raises(BadInput, match="two.example, which is no host of the public internet"):
            fetch(f"http://two.example:{port}/open", remote.public)
    assert not host.asked
    host.answers["/on"] = whole(302, Location=f"http://127.0.0.2:{port}/open")
    with pytest.raises(BadInput, match=r"127\.0\.0\.2, which is no host"):
        fetch(f"{host.url}/on", lambda address: str(address) == "127.0.0.1")
    assert [path for path, _ in host.asked] == ["/on"]


def test_the_address_that_was_checked_is_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up once: what it leads to a moment later does not matter."""
    port, looked = host.server.server_port, list[str]()
    host.answers["/it"] = whole(200, b"abc")
    real = remote.socket.getaddrinfo

    def look(name: str, *asked: Any, **more: Any) -> Any:
        if name != "name.example":
            return real(name, *asked, **more)
        looked.append(name)
        return [(2, 1, 6, "", ("127.0.0.1" if len(looked) == 1 else "127.0.0.9", port))]

    monkeypatch.setattr("socket.getaddrinfo", look)
    assert fetch(f"http://name.example:{port}/it") == b"abc" and looked == ["name.example"]
    assert host.asked[-1][1]["Host"] == f"name.example:{port}"


def test_a_server_that_may(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.answers["/it.png"] = whole(200, PICTURE)
    conversation = FakeConversation(words=1, media=MEDIA)
    asked = user("What is this?", image(f"{host.url}/it.png"))
    with running(fake_model([conversation]), allow_remote_media=True) as url:
        answer = post(url, asked)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            "messages[0].content[1] is at 127.0.0.1, which is no host of the public internet"
        )
        assert answer.json()["error"]["param"] == "messages.0.content.1.image_url.url"
        monkeypatch.setattr(answering, "fetch", partial(remote.fetch, allowed=lambda address: True))
        assert post(url, asked).status_code == 200
    pixels = conversation.asked[0][0]["content"][1]["image"]
    assert (pixels == SMALL).all()
