"""Batching: fair, bounded, in time, and without influence on the answers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from tests.xvla_jax.serving.fakes import LIMITS, FakeEngine
from xvla_jax.plans import PLANS, exact
from xvla_jax.serving.batcher import Batcher, Ticket
from xvla_jax.serving.limits import Client, Limits, RequestError
from xvla_jax.serving.metrics import Metrics

ITEM = {"domain_id": 3, "images": [np.zeros((1, 1, 3), np.uint8)]}


@asynccontextmanager
async def running(
    engine: FakeEngine, limits: Limits = LIMITS, seconds: dict[int, float] | None = None
) -> AsyncIterator[Batcher]:
    seconds = seconds or {1: engine.seconds, limits.batch: engine.seconds}
    with ThreadPoolExecutor(1) as device:
        times = {"exact10": seconds}
        async with Batcher(engine.run, device, times, limits, Metrics()) as batcher:
            yield batcher


def ticket(client: str, seed: int, *, within: float = 60.0) -> Ticket:
    return Ticket(Client(client), ITEM, (exact(5),), seed, time.monotonic() + within)


async def until(done: Callable[[], bool]) -> None:
    while not done():
        await asyncio.sleep(0.001)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 10)

    asyncio.run(bounded())


def test_a_flood_of_one_client_delays_another_by_one_batch() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.hold.clear()
        async with running(engine) as batcher:
            first = asyncio.create_task(batcher.submit(ticket("flood", 0)))
            await until(lambda: len(engine.batches) == 1)
            flood = [asyncio.create_task(batcher.submit(ticket("flood", i))) for i in range(1, 8)]
            await asyncio.sleep(0)
            late = asyncio.create_task(batcher.submit(ticket("other", 100)))
            await asyncio.sleep(0)
            engine.hold.set()
            await asyncio.gather(first, late, *flood)
        assert engine.batches == [[0], [1, 100, 2, 3], [4, 5, 6, 7]]

    run(main)


def test_requests_at_once_run_together_and_one_alone_does_not_wait() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with running(engine, dataclasses.replace(LIMITS, wait_ms=300)) as batcher:
            start = time.perf_counter()
            for seed in range(3):
                await batcher.submit(ticket("a", seed))
            assert time.perf_counter() - start < 0.3  # nobody else was there: no wait at all
            await asyncio.gather(*(batcher.submit(ticket(f"c{i}", i)) for i in range(4)))
            assert engine.batches[3:] == [[0, 1, 2, 3]]

    run(main)


@pytest.mark.parametrize(
    ("of_two", "batches"),
    # four take 1 s, which what is measured (nearly 0) lowers a little
    [(1.0, [[1, 2, 3, 4]]), (0.4, [[1, 2], [3, 4]])],
)
def test_half_of_the_others_is_enough_where_the_device_loses_little(
    of_two: float, batches: list[list[int]]
) -> None:
    async def main() -> None:
        engine = FakeEngine()
        seconds = {1: of_two, 2: of_two, 4: 1.0}
        async with running(engine, dataclasses.replace(LIMITS, wait_ms=2000), seconds) as batcher:
            engine.hold.clear()
            all_four = [asyncio.create_task(batcher.submit(ticket(f"c{i}", 0))) for i in range(4)]
            await until(lambda: len(engine.batches) == 1)  # four are there at once
            engine.hold.set()
            await asyncio.gather(*all_four)
            del engine.batches[:]
            again = []
            for seed in (1, 2, 3, 4):
                again.append(asyncio.create_task(batcher.submit(ticket(f"c{seed}", seed))))
                await asyncio.sleep(0.05)
            await asyncio.gather(*again)
        assert engine.batches == batches

    run(main)


def test_the_wait_for_others_ends() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with running(engine, dataclasses.replace(LIMITS, wait_ms=50)) as batcher:
            await asyncio.gather(*(batcher.submit(ticket(f"c{i}", i)) for i in range(4)))
            start = time.perf_counter()
            await batcher.submit(ticket("a", 9))  # four were there a moment ago
            assert 0.04 < time.perf_counter() - start < 1.0

    run(main)


def test_a_full_queue_refuses_and_the_longest_row_gives_way() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.hold.clear()
        async with running(engine) as batcher:
            running_one = asyncio.create_task(batcher.submit(ticket("a", 0)))
            await until(lambda: len(engine.batches) == 1)
            rows = [asyncio.create_task(batcher.submit(ticket("a", i))) for i in range(1, 9)]
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="too many requests wait") as refusal:
                await batcher.submit(ticket("a", 99))
            assert refusal.value.status == 503
            assert int(refusal.value.headers()["Retry-After"]) >= 1
            other = asyncio.create_task(batcher.submit(ticket("b", 50)))
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="too many"):
                await rows[-1]
            engine.hold.set()
            await asyncio.gather(running_one, other, *rows[:-1])

    run(main)


def test_a_deadline_out_of_reach_is_refused_at_once_or_when_it_has_passed() -> None:
    async def main() -> None:
        engine = FakeEngine(seconds=0.05)
        async with running(engine) as batcher:
            with pytest.raises(RequestError, match="deadline") as refusal:
                await batcher.submit(ticket("a", 0, within=0.01))
            assert refusal.value.status == 503
            assert "Retry-After" in refusal.value.headers()
            assert engine.batches == []
            engine.hold.clear()  # the device takes longer than it ever did
            first = asyncio.create_task(batcher.submit(ticket("a", 1)))
            await until(lambda: len(engine.batches) == 1)
            second = asyncio.create_task(batcher.submit(ticket("a", 2, within=0.15)))
            await asyncio.sleep(0.2)
            engine.hold.set()
            await first
            with pytest.raises(RequestError, match="deadline"):
                await second
        assert engine.batches == [[1]]

    run(main)


def test_who_has_gone_leaves_the_queue() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.hold.clear()
        async with running(engine) as batcher:
            first = asyncio.create_task(batcher.submit(ticket("a", 0)))
            await until(lambda: len(engine.batches) == 1)
            gone = asyncio.create_task(batcher.submit(ticket("b", 1)))
            await asyncio.sleep(0)
            gone.cancel()
            stays = asyncio.create_task(batcher.submit(ticket("c", 2)))
            await asyncio.sleep(0)
            engine.hold.set()
            await asyncio.gather(first, stays)
        assert engine.batches == [[0], [2]]

    run(main)


def test_a_failing_batch_fails_its_requests_and_no_other() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with running(engine) as batcher:
            engine.error = RuntimeError("out of memory at 0x7f00")
            with pytest.raises(RequestError) as refusal:
                await batcher.submit(ticket("a", 0))
            assert refusal.value.status == 500
            assert "0x7f00" not in str(refusal.value.body())
            engine.error = None
            assert (await batcher.submit(ticket("a", 7)))[0, 1] == 7

    run(main)


def test_an_answer_is_that_of_its_own_request() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with running(engine, dataclasses.replace(LIMITS, queue=64)) as batcher:
            tickets = [ticket(f"c{i % 5}", i) for i in range(40)]
            actions = await asyncio.gather(*(batcher.submit(t) for t in tickets))
        assert [int(chunk[0, 1]) for chunk in actions] == list(range(40))
        assert sorted(len(batch) for batch in engine.batches)[-1] == LIMITS.batch

    run(main)


def test_the_best_plan_that_meets_the_deadline_is_chosen_when_a_batch_is_put_together() -> None:
    """exact10 takes 0.5 s and frozen3 0.05 s: with 0.2 s left only the latter."""

    async def main() -> None:
        engine = FakeEngine()
        plans = PLANS["exact10"], PLANS["frozen3"]
        times = {"exact10": {1: 0.5, 4: 0.5}, "frozen3": {1: 0.05, 4: 0.05}}
        with ThreadPoolExecutor(1) as device:
            async with Batcher(engine.run, device, times, LIMITS, Metrics()) as batcher:
                for within, name in ((0.2, "frozen3"), (5.0, "exact10")):
                    one = Ticket(Client("a"), ITEM, plans, 0, time.monotonic() + within)
                    actions = await batcher.submit(one)
                    assert (one.plan.name, actions[0, 0]) == (name, PLANS[name].steps)
                late = Ticket(Client("a"), ITEM, plans[:1], 0, time.monotonic() + 0.2)
                with pytest.raises(RequestError, match="the deadline cannot be met"):
                    await batcher.submit(late)

    run(main)
