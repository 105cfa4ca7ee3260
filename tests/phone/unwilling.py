"""Devices that adb cannot use: one that trusts no computer, one that never answers. They speak just enough of its
protocol (24-byte heads: command, two arguments, length, sum of bytes, command inverted) on a port of this machine."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Literal

from tests.phone.device import adb

AUTH, TOKEN = 0x48545541, 1


@contextlib.contextmanager
def unwilling(kind: Literal["unauthorized", "offline"]) -> Iterator[str]:
    """Connected to adb, in that state; its serial."""
    with socket.socket() as listener:
        # Not 127.0.0.1: there adb takes the odd ports for emulators.
        listener.bind(("127.0.0.9", 0))
        listener.listen()
        threading.Thread(target=_accept, args=(listener, kind == "unauthorized"), daemon=True).start()
        serial = f"127.0.0.9:{listener.getsockname()[1]}"
        adb("connect", serial)
        yield serial
        adb("disconnect", serial)


def _accept(listener: socket.socket, answers: bool) -> None:
    kept = []
    with contextlib.suppress(OSError):
        while True:
            kept.append(listener.accept()[0])
            if answers:
                threading.Thread(target=_distrust, args=(kept[-1],), daemon=True).start()


def _distrust(connection: socket.socket) -> None:
    """Whatever comes, ask for a signature: adb offers its keys one by one, then the public one, then waits."""
    token = bytes(range(20))
    question = struct.pack("<6I", AUTH, TOKEN, 0, len(token), sum(token), AUTH ^ 0xFFFFFFFF) + token
    with contextlib.suppress(OSError, struct.error):
        while True:
            head = connection.recv(24, socket.MSG_WAITALL)
            _, kind, _, length, _, _ = struct.unpack("<6I", head)
            connection.recv(length, socket.MSG_WAITALL) if length else None
            if kind != 3:  # the public key: a person would be asked now
                connection.sendall(question)
