"""What requests hold in memory, all together, is bounded: their bodies, and the pictures and sound read of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from export.server.errors import Refused

RETRY_SECONDS = 2


class Budget:
    """Bytes for all requests of a server."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self.lock = threading.Lock()

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """The share of one request, which gives all back at its end."""
        own = Hold(self)
        try:
            yield own
        finally:
            own.end()


class Hold:
    """A request's share; any thread may add to it."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._bytes, self._ended = budget, 0, False

    def add(self, count: int) -> None:
        """Take so many bytes more; Refused where there are not as many."""
        budget = self._budget
        with budget.lock:
            if self._ended:  # a thread goes on reading for a client that has left
                raise Refused(499, "the client has left", code="client_left")
            if self._bytes + count > budget.most:
                raise Refused(
                    413,
                    f"the request holds {self._bytes + count} bytes with its pictures and sound, "
                    f"{budget.most} are possible",
                    code="body_too_large",
                )
            if budget.held + count > budget.most:
                raise Refused(
                    429,
                    f"requests hold {budget.held} of the {budget.most} bytes that they may together: try again later",
                    code="memory_full",
                    headers={"Retry-After": str(RETRY_SECONDS)},
                )
            budget.held += count
            self._bytes += count

    def end(self) -> None:
        """Give all back."""
        with self._budget.lock:
            self._ended = True
            self._budget.held -= self._bytes
            self._bytes = 0
