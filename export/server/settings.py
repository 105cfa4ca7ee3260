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
    max_body_bytes: int = 4 << 20  # of a request, apart from pictures and sound
    max_media_body_bytes: int = 50 << 20  # with them: OpenAI's limit
    max_held_bytes: int = 256 << 20  # of bodies, pictures and sound, of all requests together
    body_seconds: float = 30.0  # for all of a request's body
    media_body_seconds: float = 120.0  # with pictures and sound
    max_media: int = 32  # pictures and sounds in one request, earlier turns included
    max_file_bytes: int = 32 << 20  # of one
    max_pixels: int = 64_000_000  # of a picture: cameras of phones save up to 50 million
    max_seconds: float = 600.0  # of a sound
    allow_remote_media: bool = False  # whether pictures are fetched from other hosts
    remote_seconds: float = 20.0  # for one of them
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
