"""A server as a user starts it, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

HTTP = httpx.Client(timeout=60)  # also where the machine has other things to do


@dataclass
class Server:
    """One that answers."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str]  # what it has printed

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def health(self) -> Any:
        return HTTP.get(f"{self.url}/health").json()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one line of /metrics."""
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        text = HTTP.get(f"{self.url}/metrics").text
        found = re.search(rf"^{re.escape(f'pocketphi_{name}{{{inside}}}')} (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} with {inside} in {text}"
        return float(found[1])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Server]:
    """`python -m export.serve` with these arguments, on a free port unless they name one, killed at the end."""
    port = () if "--port" in arguments else ("--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "export.serve", *map(str, arguments), *port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert process.stderr is not None
    lines = list[str]()
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.match(r"(http://\S+)/v1 answers", line):
                break
        else:
            raise AssertionError("".join(lines))
        rest = threading.Thread(target=lines.extend, args=(process.stderr,))  # so that the pipe never fills
        rest.start()
        yield Server(found[1], process, lines)
    finally:
        process.kill()
        process.wait()
