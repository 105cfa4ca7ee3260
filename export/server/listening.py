"""A server at its address: the port taken, the application run by uvicorn, and an end that does not wait."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from checkpoints.errors import BadInput
from export.server.settings import Settings

FAREWELL_SECONDS = 3  # for connections to take the last of their answers
BACKLOG = 2048


def bind(settings: Settings) -> socket.socket:
    """Take the address; BadInput where that cannot be. Nobody is let in yet."""
    place = f"{settings.host}:{settings.port}"
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as problem:
        raise BadInput(f"--host {settings.host} is no address of this machine: {problem}") from None
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a restart; not beside who listens
        if hasattr(
            socket, "TCP_USER_TIMEOUT"
        ):  # Linux: connections get it from here, and those that stall are closed
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * settings.stalled_seconds))
        taken.bind(address)
    except OSError as problem:
        taken.close()
        raise BadInput(_cannot(place, problem)) from None
    return taken


def _cannot(place: str, problem: OSError) -> str:
    if problem.errno == errno.EADDRINUSE:
        return f"another program listens at {place} already: --port takes another, 0 any free one"
    return f"{place} cannot be listened at: {problem.strerror or problem}"


def url(taken: socket.socket) -> str:
    """Of a socket that `bind` made."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(app: FastAPI, taken: socket.socket, ready: Callable[[], None], verbose: bool = False) -> int:
    """Serve until SIGTERM (0) or Ctrl-C (130); a second one does not wait for anybody."""
    try:
        return asyncio.run(_listen(app, taken, ready, verbose))
    except OSError as problem:  # who took the address at the same time was faster to listen
        if problem.errno != errno.EADDRINUSE:
            raise
        raise BadInput(_cannot(url(taken).removeprefix("http://"), problem)) from None


async def _listen(app: FastAPI, taken: socket.socket, ready: Callable[[], None], verbose: bool) -> int:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=verbose,
        backlog=BACKLOG,
        timeout_graceful_shutdown=FAREWELL_SECONDS + 2,
        server_header=False,
        ws="none",
    )
    server, code = uvicorn.Server(config), 0
    # Of uvicorn 0.54 with signals of its own: it raises them again at the end, which would end us by SIGTERM.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]

    def stop(number: int) -> None:
        nonlocal code
        code = 130 if number == signal.SIGINT else 0
        server.force_exit = server.should_exit
        server.should_exit = True
        app.state.desk.closing.set()
        loop.call_later(FAREWELL_SECONDS, cut)

    def cut() -> None:  # before uvicorn does: it cancels their tasks, and prints a traceback for each
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    serving = asyncio.create_task(server.serve(sockets=[taken]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await serving
    return code
