"""The other end of the stand-in app's socket: a process on the host that runs the files that were pushed.

The phone's folder has no torch, so the wheel's runner works outside of it, on the phone's own files by way of
/proc/PID/root. What it measures is this machine and not a phone; that the numbers are measured, and arrive, is real.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from export.bench.desktop import desktop
from export.bench.outcome import Watch
from export.bench.plan import Plan
from tests.phone.device import Phone

NAME = "runner.socket"


@dataclass
class Served:
    """What was asked of the host and what it answered."""

    orders: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # of the prompt files, by their path on the phone
    repeats: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def serve(phone: Phone) -> Iterator[Served]:
    """Answer the stand-in's calls for as long as the block lasts."""
    served = Served()
    with socket.socket(socket.AF_UNIX) as listener:
        # A path of a Unix socket is short, that of a test's folder may not be.
        listener.bind(f"/proc/{phone.init}/root/phone/{NAME}")
        listener.listen()
        phone.behave(socket=f"/phone/{NAME}")
        threading.Thread(target=_answer, args=(listener, phone, served), daemon=True).start()
        yield served


def _answer(listener: socket.socket, phone: Phone, served: Served) -> None:
    with contextlib.suppress(OSError):
        while True:
            app, _ = listener.accept()
            with app, app.makefile("rw") as stream:
                order = json.loads(stream.readline())
                served.orders.append(order)
                _measure(order, phone, served, stream)


def _measure(order: dict[str, Any], phone: Phone, served: Served, stream: Any) -> None:
    def local(path: str) -> Path:
        return phone.root / path.lstrip("/")

    def tell(**event: Any) -> None:
        stream.write(json.dumps(event) + "\n")
        stream.flush()

    def keep(index: int, repeat: dict[str, Any]) -> None:
        number = sum(1 for at in seen if at == index)
        seen.append(index)
        served.repeats.append(repeat)
        tell(configuration=index, number=number, repeat=repeat)

    seen: list[int] = []
    served.texts.update({path: local(path).read_text() for path in order["prompt_files"].split(",")})
    plan = Plan(
        local(order["model"]), local(order["tokenizer"]), tuple(map(int, order["prompt_tokens"].split(","))),
        order["new_tokens"], order["repeats"], order["warmups"], order["cooldown_s"], order["load_mode"], 120.0,
    )  # fmt: skip
    run = desktop.Run(plan, Watch(Console(quiet=True)), keep)
    if problem := run.follow():
        tell(problem=problem)
