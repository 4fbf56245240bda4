"""Places for programs: never more than there are, the oldest node first, none lost to a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from corerun.job.slots import Slots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_never_more_holders_than_places() -> None:
    slots, held, most = Slots(2), 0, 0

    async def work(order: int) -> None:
        nonlocal held, most
        async with slots.place(order):
            held += 1
            most = max(most, held)
            await settle()
            held -= 1

    await asyncio.gather(*(work(order) for order in range(9)))
    assert (held, most) == (0, 2)


async def test_the_lowest_order_comes_first_whenever_it_came() -> None:
    slots, started = Slots(1), list[int]()
    gate = asyncio.Event()

    async def first() -> None:
        async with slots.place(9):
            await gate.wait()

    async def later(order: int) -> None:
        async with slots.place(order):
            started.append(order)

    tasks = [asyncio.create_task(first())]
    await settle()
    tasks += [asyncio.create_task(later(order)) for order in (5, 3, 4)]
    await settle()
    gate.set()
    await asyncio.gather(*tasks)
    assert started == [3, 4, 5]


async def test_who_gives_a_place_back_may_have_it_again_at_once() -> None:
    slots, turns = Slots(1), list[str]()

    async def node(name: str, order: int) -> None:
        for step in ("program", "reader"):
            async with slots.place(order):
                await settle()
                turns.append(f"{name} {step}")

    await asyncio.gather(node("old", 0), node("new", 1))
    assert turns == ["old program", "old reader", "new program", "new reader"]


@pytest.mark.parametrize("granted", [False, True])
async def test_a_cancelled_wait_costs_no_place(granted: bool) -> None:
    slots = Slots(1)
    gate = asyncio.Event()

    async def hold() -> None:
        async with slots.place(0):
            await gate.wait()

    async def wait() -> None:
        async with slots.place(1):
            pass

    holder = asyncio.create_task(hold())
    await settle()
    waiter = asyncio.create_task(wait())
    await settle()
    if granted:
        # The place is handed to the waiter, which is cancelled before it can take it.
        gate.set()
        while not slots_are_taken_by_waiter(slots):
            await asyncio.sleep(0)
    waiter.cancel()
    gate.set()
    await asyncio.gather(holder, waiter, return_exceptions=True)
    async with asyncio.timeout(5), slots.place(2):
        pass


def slots_are_taken_by_waiter(slots: Slots) -> bool:
    return not slots._waiting
