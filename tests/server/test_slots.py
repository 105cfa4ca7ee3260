"""Slots: every conversation has one request at a time, clients take turns, and prompts go where they lie already."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.server.slots import QueueFull, Slots, common_prefix


class Cache:
    def __init__(self, held: Sequence[int] = ()) -> None:
        self.held = list(held)


def order(requests: Sequence[tuple[str, int]], caches: int = 1) -> list[tuple[str, int]]:
    """In which order requests (client, number) that come at once get their turn."""
    got: list[tuple[str, int]] = []

    async def run() -> None:
        slots = Slots([Cache() for _ in range(caches)], len(requests))

        async def one(client: str, number: int) -> None:
            async with slots.turn(client, [number]):
                got.append((client, number))
                await asyncio.sleep(0)

        await asyncio.gather(*(one(client, number) for client, number in requests))
        assert (slots.waiting, slots.running) == (0, 0)

    asyncio.run(run())
    return got


def test_clients_take_turns() -> None:
    many = [("greedy", number) for number in range(5)]
    assert order([*many, ("modest", 0), ("other", 0)]) == [
        ("greedy", 0), ("greedy", 1), ("modest", 0), ("other", 0), ("greedy", 2), ("greedy", 3), ("greedy", 4)
    ]  # fmt: skip


def test_a_full_queue() -> None:
    async def run() -> None:
        slots = Slots([Cache()], 1)
        async with slots.turn("a", []):
            waiting = asyncio.create_task(slots.turn("a", []).__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await slots.turn("b", []).__aenter__()
            waiting.cancel()
        async with slots.turn("b", []):
            assert (slots.waiting, slots.running) == (0, 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("held", "prompt", "expected"),
    [
        ([[], [1, 2, 3, 4]], [1, 2, 3, 4, 5], 1),  # goes on with what is there
        ([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]], [1, 2, 3, 4, 7], 0),  # and loses nothing of the other
        ([[1, 2, 9, 9, 9, 9], []], [1, 2, 5], 1),  # only a system prompt in common: beside it is room
        ([[8] * 6, [9] * 3], [1, 2], 1),  # the shorter is lost
    ],
)
def test_a_prompt_goes_where_it_lies(held: list[list[int]], prompt: list[int], expected: int) -> None:
    async def run() -> int:
        async with Slots([Cache(ids) for ids in held], 0).turn("a", prompt) as number:
            return number

    assert asyncio.run(run()) == expected


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 30), st.integers(0, 1 << 30))
def test_no_turn_is_lost_or_given_twice(caches: int, requests: int, seed: int) -> None:
    """Whatever is cancelled and when: waiting, in the moment of its turn, or running."""
    chance = random.Random(seed)

    async def run() -> None:
        slots, busy, served = Slots([Cache() for _ in range(caches)], requests), set[int](), list[int]()

        async def one(at: int) -> None:
            async with slots.turn(at % 3, [at]) as number:
                assert number not in busy
                busy.add(number)
                try:
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(0)
                    served.append(at)
                finally:
                    busy.remove(number)

        tasks = [asyncio.create_task(one(at)) for at in range(requests)]
        left = [task for task in tasks if chance.random() < 0.4]
        for task in left:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        async with asyncio.timeout(20):  # where a turn is lost somebody waits for ever
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (slots.waiting, slots.running, busy) == (0, 0, set())
        assert set(served) >= {at for at, task in enumerate(tasks) if task not in left}

    asyncio.run(run())


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(one: list[int], other: list[int]) -> None:
    found = common_prefix(one, other)
    assert one[:found] == other[:found] and (found == min(len(one), len(other)) or one[found] != other[found])
