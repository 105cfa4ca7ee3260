"""Whose turn it is: a model's conversations lent to one request each, fairly, and where its prompt lies already.

All of it runs in one event loop. Knows ids that a conversation holds; nothing of HTTP or of what is answered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from export.engine.media_ids import mode_of_ids


class Holding(Protocol):
    """A KV cache."""

    @property
    def held(self) -> Sequence[int]:
        """Ids of the tokens in it."""


H = TypeVar("H", bound=Holding)


class QueueFull(Exception):
    """As many wait as may."""


@dataclass(eq=False)
class Waiting:
    """One request in the queue."""

    ids: Sequence[int]
    turn: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Slots(Generic[H]):
    """Conversations, and the requests that wait for one.

    Clients take turns: of the waiting ones each gets one request through, then the next, however many one has sent.
    Requests of one client keep their order.
    """

    def __init__(self, conversations: Sequence[H], most_waiting: int) -> None:
        self.conversations = conversations
        self.most_waiting = most_waiting
        self._free = list(range(len(conversations)))  # the longest unused first
        self._waiting: OrderedDict[Hashable, deque[Waiting]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """Requests that have a conversation."""
        return len(self.conversations) - len(self._free)

    @asynccontextmanager
    async def turn(self, client: Hashable, ids: Sequence[int]) -> AsyncIterator[int]:
        """Number of a conversation that is the caller's alone meanwhile, chosen for a prompt of these ids.

        QueueFull at once where too many wait. A task that is cancelled leaves the queue.
        """
        number = await self._take(client, ids)
        try:
            yield number
        finally:
            self._free.append(number)
            self._next()

    async def _take(self, client: Hashable, ids: Sequence[int]) -> int:
        if self._free and not self._waiting:
            return self._choose(ids)
        if self.waiting >= self.most_waiting:
            raise QueueFull
        own = Waiting(ids)
        self._waiting.setdefault(client, deque()).append(own)
        try:
            return await own.turn
        except asyncio.CancelledError:
            if own.turn.done() and not own.turn.cancelled():  # its turn came in the same moment
                self._free.append(own.turn.result())
                self._next()
            else:
                self._leave(client, own)
            raise

    def _leave(self, client: Hashable, own: Waiting) -> None:
        if own in (line := self._waiting.get(client, deque())):
            line.remove(own)
        if not line:
            self._waiting.pop(client, None)

    def _next(self) -> None:
        while self._free and self._waiting:
            client, line = self._waiting.popitem(last=False)
            first = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if not first.turn.done():
                first.turn.set_result(self._choose(first.ids))

    def _choose(self, ids: Sequence[int]) -> int:
        """Where least is fed and least is lost: a long common prefix, and little held beyond it.

        By the prefix alone, chats that share a system prompt would overwrite each other beside an empty cache.
        """
        lost, mode = {}, mode_of_ids(ids)
        for number in self._free:
            held = self.conversations[number].held
            kept = common_prefix(held, ids) if mode_of_ids(held) == mode else 0  # else it is all fed anew
            lost[number] = len(held) - 2 * kept
        number = min(self._free, key=lost.__getitem__)
        self._free.remove(number)
        return number


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first ids are the same."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
