"""What a server is told when it starts, apart from its models."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from checkpoints.errors import BadInput

PORTS = 65535


@dataclass(frozen=True)
class Settings:
    """Where a server listens, whom it answers, and how much of anything it takes."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    api_keys: tuple[str, ...] = ()  # none: everybody
    max_queue: int = 64  # requests that wait, for each model
    max_body_bytes: int = 4 << 20
    body_seconds: float = 30.0  # for all of a request's body
    first_event_seconds: float = 10.0  # a stream begins by then, with a comment where there is nothing to say
    max_stream_bytes: int = 1 << 20  # of a stream that its client does not read
    stalled_seconds: float = 60.0  # a connection that takes nothing for so long is closed

    def check(self) -> None:
        """Raise BadInput for what no server can do."""
        if not 0 <= self.port <= PORTS:
            raise BadInput(f"--port {self.port} is not within 0 to {PORTS}")
        if self.max_queue < 0:
            raise BadInput(f"--max-queue {self.max_queue} is below 0")
        if any(not key or not key.isascii() or not key.isprintable() or key != key.strip() for key in self.api_keys):
            raise BadInput("--api-key must be printable ASCII, without spaces around it")
        if not self.loopback and not self.api_keys:
            raise BadInput(
                f"--host {self.host} lets other machines in, and all of them are answered without --api-key: give one"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
