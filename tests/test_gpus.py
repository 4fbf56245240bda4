"""GPUs: what they are called, and that no two programs ever have the same one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.errors import EnvironmentRefused
from corerun.execution.gpus import GpuLeases, visible_gpus

UUIDS = [f"GPU-{digit * 8}-0000-0000-0000-{digit * 12}" for digit in "abc"]


def driver(folder: Path, *texts: str) -> Path:
    for number, text in enumerate(texts):
        card = folder / f"0000:0{number}:00.0"
        card.mkdir()
        (card / "information").write_text(text)
    return folder


def about(uuid: str, excluded: str = "No") -> str:
    return f"Model: \t\t NVIDIA X\nIRQ:   \t\t 11\nGPU UUID: \t {uuid}\nGPU Excluded:\t {excluded}\n"


def test_cards_are_named_by_uuid_where_the_driver_tells_it(tmp_path: Path) -> None:
    cards = driver(tmp_path, *map(about, UUIDS))
    assert visible_gpus({}, cards) == tuple(UUIDS)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 0"}, cards) == (UUIDS[2], UUIDS[0])


@pytest.mark.parametrize("unknown", ["GPU-????????-????-????-????-????????????", ""])
def test_one_card_that_hides_its_uuid_makes_all_of_them_numbers(tmp_path: Path, unknown: str) -> None:
    assert visible_gpus({}, driver(tmp_path, about(UUIDS[0]), about(unknown))) == ("0", "1")


def test_an_excluded_card_is_none(tmp_path: Path) -> None:
    assert visible_gpus({}, driver(tmp_path, about(UUIDS[0]), about(UUIDS[1], "Yes"))) == (UUIDS[0],)


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("", ()),
        ("-1", ()),
        ("1,-1,2", (UUIDS[1],)),
        ("GPU-bbbb", (UUIDS[1],)),
        (f"1,{UUIDS[1]},GPU-b", (UUIDS[1],)),
        ("GPU-", ("GPU-",)),
        ("7", ("7",)),
        ("MIG-1/2/3", ("MIG-1/2/3",)),
    ],
)
def test_names_as_the_driver_reads_them(tmp_path: Path, named: str, found: tuple[str, ...]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}, driver(tmp_path, *map(about, UUIDS))) == found


def test_without_a_driver_only_what_is_named(tmp_path: Path) -> None:
    assert visible_gpus({}, tmp_path / "none") == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "4,7,4"}, tmp_path / "none") == ("4", "7")


# -------------------------------------------------------------------------------------- leases


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_more_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(EnvironmentRefused, match="wants 3 GPUs, and there are 2") as caught:
        async with GpuLeases("ab").lease(3):
            pass
    assert caught.value.exit_code == 3


async def test_no_card_is_no_wait() -> None:
    leases = GpuLeases("a")
    async with leases.lease(1):
        waiting = asyncio.create_task(hold(leases, 1, asyncio.Event()))
        await turns()
        async with leases.lease(0) as cards:
            assert cards == ()
        waiting.cancel()


async def hold(leases: GpuLeases, count: int, until: asyncio.Event) -> tuple[str, ...]:
    async with leases.lease(count) as cards:
        await until.wait()
        return cards


async def test_a_wait_that_is_cancelled_gives_nothing_away() -> None:
    leases, free = GpuLeases("ab"), asyncio.Event()
    holder = asyncio.create_task(hold(leases, 1, free))
    both = asyncio.create_task(hold(leases, 2, free))
    one = asyncio.create_task(hold(leases, 1, free))
    await turns()
    both.cancel()
    await turns()
    free.set()
    assert (await holder, await one) == (("a",), ("b",))
    async with leases.lease(2) as cards:
        assert cards == ("a", "b")


async def test_a_lease_that_is_cancelled_as_it_is_given_comes_back() -> None:
    leases, free = GpuLeases("a"), asyncio.Event()
    holder = asyncio.create_task(hold(leases, 1, free))
    await turns()
    next_one = asyncio.create_task(hold(leases, 1, free))
    await turns()
    free.set()
    await holder  # has just handed its card on
    next_one.cancel()
    await asyncio.gather(next_one, return_exceptions=True)
    async with asyncio.timeout(5), leases.lease(1) as cards:
        assert cards == ("a",)


async def test_who_wants_many_is_not_passed_for_ever_by_those_who_want_one() -> None:
    leases, free = GpuLeases("ab"), [asyncio.Event() for _ in range(3)]
    tasks = [
        asyncio.create_task(hold(leases, count, event)) for count, event in zip((1, 2, 1), free, strict=True)
    ]
    await turns()
    free[2].set()
    await turns()
    assert not tasks[2].done(), "it came later"
    free[0].set()
    await turns()
    assert tasks[0].done() and not tasks[2].done(), "both cards went to who came before"
    free[1].set()
    assert await asyncio.gather(*tasks) == [("a",), ("a", "b"), ("a",)]


@given(
    cards=st.integers(1, 4),
    wanted=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=12),
)
@settings(deadline=None, max_examples=60)
def test_no_card_is_ever_shared_or_lost(cards: int, wanted: list[tuple[int, int, bool]]) -> None:
    async def all_at_once() -> None:
        leases, used = GpuLeases(map(str, range(cards))), set[str]()

        async def program(count: int, steps: int) -> None:
            async with leases.lease(count) as mine:
                assert len(mine) == count and not used & set(mine)
                used.update(mine)
                try:
                    for _ in range(steps):
                        await asyncio.sleep(0)
                finally:
                    used.difference_update(mine)

        tasks = [asyncio.create_task(program(min(count, cards), steps)) for count, steps, _ in wanted]
        await asyncio.sleep(0)
        for task, (_, steps, cut) in zip(tasks, wanted, strict=True):
            if cut:
                task.cancel()
                for _ in range(steps):
                    await asyncio.sleep(0)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        async with leases.lease(cards) as everything:
            assert everything == tuple(map(str, range(cards)))

    asyncio.run(all_at_once())
