"""The queue of one model: places, rates per minute, and one probe while the model is in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.interfaces import ChatReply, Usage
from corerun.llm.directory import Pace
from corerun.llm.lane import CLOSED_S, Lane
from corerun.llm.rates import Bucket


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


def make(clock: Clock, **pace: float) -> Lane:
    return Lane(Pace(concurrency=8, **pace), clock, clock.sleep)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_five_failures_in_a_row_close_the_lane_for_all_but_the_probe(clock: Clock) -> None:
    lane = make(clock)
    async with lane.place() as first, lane.place() as other:
        for moment in range(4):
            clock.now = moment
            assert lane.failed(first, limited=False) == 0
        await lane.passage(other)
        clock.now = 4
        assert lane.failed(first, limited=False) == CLOSED_S, "the model is left alone for a while"
        waiting = asyncio.create_task(lane.passage(other))
        await settle()
        assert not waiting.done()
        await lane.passage(first)
        lane.succeeded(other)
        await settle()
        assert not waiting.done(), "only the probe opens the lane"
        lane.succeeded(first)
        await waiting


async def test_a_probe_that_gives_up_is_followed_by_one_call_and_not_by_all(clock: Clock) -> None:
    lane = make(clock)
    through: list[int] = []

    async def call(number: int) -> None:
        async with lane.place() as ticket:
            await lane.passage(ticket)
            through.append(number)
            await finish[number].wait()
            if number == 3:
                lane.succeeded(ticket)

    finish = [asyncio.Event() for _ in range(7)]
    async with lane.place() as first:
        lane.failed(first, limited=True)
        calls = [asyncio.create_task(call(number)) for number in range(6)]
        await settle()
        assert through == []
    await settle()
    assert through == [0], "the place was left, by an error or by cancelling"
    calls[0].cancel()
    calls[1].cancel()
    await settle()
    assert through == [0, 2]
    finish[2].set()
    await settle()
    assert through == [0, 2, 3]
    finish[3].set()
    await settle()
    assert through == [0, 2, 3, 4, 5], "an answer opens the lane"
    for event in finish:
        event.set()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_the_first_to_come_tries_a_closed_lane_that_nobody_waits_for(clock: Clock) -> None:
    lane = make(clock)
    async with lane.place() as first:
        lane.failed(first, limited=True)
    async with lane.place() as second, lane.place() as third:
        await lane.passage(second)
        waiting = asyncio.create_task(lane.passage(third))
        await settle()
        assert not waiting.done()
        lane.succeeded(second)
        await waiting


async def test_an_answer_ends_the_failures_in_a_row(clock: Clock) -> None:
    lane = make(clock)
    async with lane.place() as first, lane.place() as other:
        for moment in range(7):
            clock.now = moment
            lane.failed(first, limited=False)
            if moment == 3:
                lane.succeeded(first)
        async with asyncio.timeout(1):
            await lane.passage(other)


async def test_slow_failures_do_not_close_the_lane(clock: Clock) -> None:
    lane = make(clock)
    async with lane.place() as first, lane.place() as other:
        for moment in range(20):
            clock.now = moment * 20
            assert lane.failed(first, limited=False) == 0
        await lane.passage(other)


async def test_requests_per_minute_are_kept_in_order(clock: Clock) -> None:
    lane = make(clock, requests_per_minute=60)
    admitted: list[tuple[int, float]] = []

    async def call(number: int) -> None:
        await lane.admit(10)
        admitted.append((number, clock.now))

    await asyncio.gather(*(call(number) for number in range(15)))
    assert [number for number, _ in admitted] == list(range(15))
    assert [moment for _, moment in admitted[:10]] == [0.0] * 10, "a sixth of a minute at once"
    assert [moment for _, moment in admitted[10:]] == pytest.approx([1, 2, 3, 4, 5])


async def test_tokens_are_booked_beforehand_and_settled_by_what_was_used(clock: Clock) -> None:
    lane = make(clock, tokens_per_minute=600)
    await lane.admit(100)
    lane.settle(100, ChatReply("x", usage=Usage(10, 10)))
    await lane.admit(80)
    assert clock.now == 0, "80 of 100 tokens came back"
    lane.settle(80, ChatReply("x", usage=Usage(200, 80)))
    await lane.admit(1)
    assert clock.now == pytest.approx(20.1), "200 tokens of debt and 1 more, at 10 tokens a second"


async def test_a_call_that_is_larger_than_the_bucket_waits_until_it_is_full(clock: Clock) -> None:
    lane = make(clock, tokens_per_minute=600)
    await lane.admit(1)
    await lane.admit(5000)
    assert clock.now == pytest.approx(0.1)


async def test_failures_give_their_tokens_back_and_refused_features_cost_requests(clock: Clock) -> None:
    lane = make(clock, requests_per_minute=60, tokens_per_minute=600)
    await lane.admit(100)
    lane.settle(100, None)
    await lane.admit(100)
    assert clock.now == 0
    lane.settle(100, ChatReply("x", usage=Usage(0, 0), requests=9))
    await lane.admit(1)
    assert clock.now == pytest.approx(1.0), "2 + 8 of 10 requests are used"


async def test_what_was_booked_and_not_sent_is_given_back(clock: Clock) -> None:
    lane = make(clock, requests_per_minute=60, tokens_per_minute=600)
    for _ in range(100):
        await lane.admit(100)
        lane.release(100)
    assert clock.now == 0


async def test_nobody_is_stuck_behind_a_call_that_leaves_the_queue(clock: Clock) -> None:
    sleeping = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await sleeping.wait()
        clock.now += seconds

    lane = Lane(Pace(concurrency=8, requests_per_minute=6), clock, sleep)
    await lane.admit(1)
    calls = [asyncio.create_task(lane.admit(1)) for _ in range(3)]
    await settle()
    for call in calls[:2]:
        call.cancel()
    sleeping.set()
    await calls[2]
    assert clock.now == pytest.approx(10.0), "the two that left took nothing with them"


async def test_what_the_server_says_is_left_counts(clock: Clock) -> None:
    lane = make(clock, requests_per_minute=60)
    await lane.admit(1)
    lane.settle(1, ChatReply("x", requests_left=0))
    await lane.admit(1)
    assert clock.now == pytest.approx(1.0)


@given(
    st.floats(1, 1e5),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 500)), min_size=1, max_size=30),
)
def test_no_bucket_gives_more_than_its_rate_and_one_burst(
    rate: float, steps: list[tuple[float, float]]
) -> None:
    clock = Clock()
    bucket = Bucket(rate, clock)
    burst = max(rate / 6, 1.0)
    taken = 0.0
    for pause, amount in steps:
        clock.now += pause
        clock.now += bucket.seconds_until(amount)
        bucket.take(amount)
        taken += amount
        # The last one may go into debt by what is larger than the bucket.
        assert taken - max(0.0, amount - burst) <= burst + clock.now * rate / 60 + 1e-6 * max(taken, 1)
