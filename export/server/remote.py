"""Fetches a picture from another host, for servers that were told that they may: --allow-remote-media.

Whoever may ask the server could else reach with it what only the server reaches: services of its machine and network,
or a cloud's metadata. So names are looked up first, each address must be one of the public internet, and the
connection goes to the very address that was checked, also after a redirect. Proxies of the environment are not
used, cookies and keys not sent, and nothing of an answer that is no picture is told.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from checkpoints.errors import BadInput
from export.server.errors import Refused

REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 3
BLOCK = 1 << 16
SAFE = "%/:=&?~+!$,;'@()*[]"  # of a path, and what is quoted already
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # leads to the IPv4 address in its last bits
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def public(address: Address) -> bool:
    """Whether an address is one of the public internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo:
            return False
        if inner is not None:
            return public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def fetch(
    url: str, name: str, *, most_bytes: int, seconds: float, allowed: Callable[[Address], bool] = public
) -> bytes:
    """What is at an http or https URL; `name` stands in the sentences.

    BadInput where it cannot be had in so many seconds, Refused (413) where it is larger than `most_bytes`.
    """
    end = time.monotonic() + seconds
    for _ in range(MOST_REDIRECTS + 1):
        parts = _split(url, name)
        try:
            found = _get(parts, name, most_bytes, end, allowed)
        except TimeoutError:
            raise BadInput(f"{name} could not be fetched from {parts.hostname} within {seconds:g} s") from None
        except (OSError, http.client.HTTPException, ValueError):
            raise BadInput(f"{name} could not be fetched from {parts.hostname}") from None
        if isinstance(found, bytes):
            return found
        with suppress(ValueError):  # else it is what `_split` refuses
            found = urljoin(url, found)
        url = found
    raise BadInput(f"{name} is led on by {parts.hostname} more than {MOST_REDIRECTS} times")


def _split(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadInput(f"{name} has a URL that is none") from None
    if parts.scheme not in PORTS or not parts.hostname or port == 0:
        raise BadInput(f"{name} is at {url!r:.80}: http and https URLs are fetched")
    if parts.username is not None or parts.password is not None:
        raise BadInput(f"{name} has a URL with a password in it")
    return parts


def _get(parts: SplitResult, name: str, most: int, end: float, allowed: Callable[[Address], bool]) -> bytes | str:
    """The body, or where a redirect leads."""
    host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
    connection = http.client.HTTPConnection(host, port)
    connection.sock = _connect(host, port, name, end, allowed)
    sockets = [connection.sock]  # http.client forgets its own where the answer has no length
    # Each byte may take as long as a socket's timeout is: only this ends what drips.
    watch = threading.Timer(end - time.monotonic(), lambda: _cut(sockets[-1]))
    watch.start()
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            secured = context.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
            connection.sock = secured
            sockets.append(secured)
            secured.do_handshake()
        path = quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")
        headers = {
            "Host": parts.netloc,
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "User-Agent": "pocketphi",
        }
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        if answer.status in REDIRECTS and (place := answer.getheader("Location")):
            return place
        if answer.status != 200:
            raise BadInput(f"{name} could not be fetched: {host} answers with status {answer.status}")
        body = _body(answer, name, most)
        _left(end)  # what is cut may look like an end
        return body
    except (OSError, http.client.HTTPException, ValueError):
        _left(end)
        raise
    finally:
        watch.cancel()
        connection.close()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _connect(host: str, port: int, name: str, end: float, allowed: Callable[[Address], bool]) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = {ipaddress.ip_address(str(place[0]).partition("%")[0]): place for *_, place in found}
    if not all(map(allowed, addresses)):
        raise BadInput(f"{name} is at {host}, which is no host of the public internet")
    problem: OSError = OSError(f"{host} has no address")
    for address in addresses:
        try:
            return socket.create_connection((str(address), port), timeout=_left(end))
        except TimeoutError:
            raise
        except OSError as failed:
            problem = failed
    raise problem


def _body(answer: http.client.HTTPResponse, name: str, most: int) -> bytes:
    parts, size = list[bytes](), 0
    while part := answer.read1(BLOCK):
        parts.append(part)
        size += len(part)
        if size > most:
            raise Refused(413, f"{name} is larger than {most} bytes", code="file_too_large")
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(parts)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
