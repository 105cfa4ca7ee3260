"""What a server counts for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from export.engine.conversation import Reply
    from export.server.models import Model

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
KIND = ("model", "kind")  # image, audio
RATES = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # tokens a second


class Metrics:
    """Counters of one application, in a registry of its own."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.registry = CollectorRegistry()

        def made(
            kind: Callable[..., Any], name: str, help_: str, labels: tuple[str, ...] = ("model",), **more: Any
        ) -> Any:
            return kind(f"pocketphi_{name}", help_, labels, registry=self.registry, **more)

        self.requests = made(Counter, "requests", "Requests by path and status", ("path", "status"))
        self.seconds = made(Histogram, "request_seconds", "From request to end of answer", ("path",), buckets=SECONDS)
        self.prompt_tokens = made(Counter, "prompt_tokens", "Tokens of prompts")
        self.cached_tokens = made(Counter, "cached_prompt_tokens", "Of them, those that lay in a KV cache")
        self.new_tokens = made(Counter, "new_tokens", "Tokens of answers")
        self.first_token = made(
            Histogram, "first_token_seconds", "From request to first token, waiting included", buckets=SECONDS
        )
        self.rate = made(
            Histogram, "decode_tokens_per_second", "Of each answer, after its first token", buckets=RATES
        )
        self.media = made(
            Counter, "media", "Pictures and sounds of prompts, encoded anew or kept", ("model", "kind", "rows")
        )
        self.media_tokens = made(Counter, "media_tokens", "Tokens of prompts that are a picture's or sound's", KIND)
        self.encode = made(
            Histogram, "encode_seconds", "To encode a picture or sound that was not kept", KIND, buckets=SECONDS
        )
        self.cancelled = made(Counter, "cancelled", "Answers that were cut because the client left or read nothing")
        waiting = made(Gauge, "waiting_requests", "Requests in the queue")
        running = made(Gauge, "running_requests", "Requests that have a conversation")
        for name, model in models.items():
            waiting.labels(name).set_function(lambda slots=model.slots: slots.waiting)
            running.labels(name).set_function(lambda slots=model.slots: slots.running)
            for counter in (self.prompt_tokens, self.cached_tokens, self.new_tokens, self.cancelled):
                counter.labels(name)  # 0 and not absent
            for kind in model.modalities[1:]:
                self.encode.labels(name, kind), self.media_tokens.labels(name, kind)
                for rows in ("encoded", "kept"):
                    self.media.labels(name, kind, rows)
        memory = made(Gauge, "memory_bytes", "Resident memory, private or shared (mapped weights)", ("kind",))
        for place, kind in enumerate(("private", "shared")):
            memory.labels(kind).set_function(lambda place=place: memory_bytes()[place])

    def count(self, model: str, reply: Reply) -> None:
        """Add one answer."""
        self.prompt_tokens.labels(model).inc(reply.prompt_tokens)
        self.cached_tokens.labels(model).inc(reply.prompt_tokens - reply.fed_tokens)
        self.new_tokens.labels(model).inc(reply.new_tokens)
        if (rate := decode_rate(reply)) is not None:
            self.rate.labels(model).observe(rate)
        for one in reply.media:
            self.media.labels(model, one.kind, "kept" if one.reused else "encoded").inc()
            self.media_tokens.labels(model, one.kind).inc(one.tokens)
            if not one.reused:
                self.encode.labels(model, one.kind).observe((one.prepare_ms + one.encode_ms) / 1000)
        if reply.end == "cancelled":
            self.cancelled.labels(model).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


def decode_rate(reply: Reply) -> float | None:
    """Tokens a second after the first; None where there are no more."""
    return 1000 * (reply.new_tokens - 1) / reply.decode_ms if reply.new_tokens > 1 and reply.decode_ms > 0 else None


def memory_bytes() -> tuple[int, int]:
    """Resident memory of this process: private, and of files, which other processes share."""
    info = psutil.Process().memory_info()
    shared = getattr(info, "shared", 0)
    return info.rss - shared, shared


class Counted:
    """An ASGI application that counts the requests to another."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.monotonic()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # not what a stranger makes up
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)
