"""Decides which requests run together, and when: fair, bounded, and with deadlines.

`FairQueue` orders what waits, `Turns` shares the decoder threads by that order, `Batcher` collects
requests and hands them to the device.

All of it runs in one event loop, so there is nothing to lock; the device has one thread, which
runs one batch at a time.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final, Generic, TypeVar

import numpy as np

from xvla_jax.plans import DEFAULT, SamplerPlan
from xvla_jax.serving.limits import CROWD, Client, Limits, RequestError
from xvla_jax.serving.metrics import Metrics

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
_MOST_TURNS: Final = 16  # of one address; further names share the turn of the crowd

Run = Callable[[Sequence[Any], Sequence[SamplerPlan], Sequence[int]], np.ndarray]
_PEAK_SECONDS: Final = 1.0  # width of a window in which the requests at once are counted
_LATEST_SHARE: Final = 0.2  # weight of the last batch in the mean of batch times
# Two halves may take the device this many times as long as one batch of all; see `_enough`.
_HALVES_COST: Final = 1.25
Rows = collections.OrderedDict[str, collections.deque[T]]


class FairQueue(Generic[T]):
    """Queue that is first in, first out for each client, and round robin among addresses.

    An address has one turn however many names its clients give themselves; inside of an address,
    its clients take turns.

    Args:
        client_of: returns the client of an item.
    """

    def __init__(self, client_of: Callable[[T], Client]) -> None:
        self._client_of = client_of
        self._waiting: collections.OrderedDict[str, Rows[T]] = collections.OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, item: T) -> None:
        """Adds an item behind those of its client."""
        client = self._client_of(item)
        rows = self._waiting.setdefault(client.address, collections.OrderedDict())
        rows.setdefault(_row_of(client, rows), collections.deque()).append(item)
        self._size += 1

    def pop(self) -> T:
        """Returns the next item of the client whose turn it is; both go to the end."""
        address, rows = next(iter(self._waiting.items()))
        name, items = next(iter(rows.items()))
        item = items.popleft()
        rows.move_to_end(name)
        self._waiting.move_to_end(address)
        self._taken(address, name)
        return item

    def remove(self, item: T) -> bool:
        """Removes an item wherever it stands; False if it is not there."""
        address = self._client_of(item).address
        for name, items in self._waiting.get(address, {}).items():
            if item in items:
                items.remove(item)
                self._taken(address, name)
                return True
        return False

    def ahead(self, client: Client) -> int:
        """Number of items that would come before a new one of this client."""
        rows = self._waiting.get(client.address, collections.OrderedDict())
        row = _row_of(client, rows)
        own = len(rows.get(row, ()))
        before = own + sum(min(len(items), own + 1) for n, items in rows.items() if n != row)
        others = (_size(r) for address, r in self._waiting.items() if address != client.address)
        return before + sum(min(size, before + 1) for size in others)

    def victim(self, client: Client) -> T | None:
        """Returns the item that a full queue gives up for one of this client.

        It is the newest of the longest row: of the address that has most, or else of the client's
        own; None where the client itself would have no less.
        """
        own = self._waiting.get(client.address, collections.OrderedDict())
        longest = max(self._waiting.values(), key=_size, default=own)
        if _size(own) + 1 < _size(longest):
            return max(longest.values(), key=len)[-1]
        row = max(own.values(), key=len, default=None)
        if row and len(own.get(_row_of(client, own), ())) + 1 < len(row):
            return row[-1]
        return None

    def _taken(self, address: str, name: str) -> None:
        self._size -= 1
        rows = self._waiting[address]
        if not rows[name]:
            del rows[name]
        if not rows:
            del self._waiting[address]


class Turns:
    """A lock with several holders; the others wait in a `FairQueue`.

    Args:
        slots: number of holders.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._queue: FairQueue[_Waiter] = FairQueue(lambda waiter: waiter.client)

    async def take(self, client: Client) -> None:
        """Waits for a turn; each one that is taken must be given back."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(_Waiter(client))

    def give_back(self) -> None:
        """Hands the turn to the next that waits."""
        if len(self._queue):
            self._queue.pop().future.set_result(None)
        else:
            self._free += 1

    async def _wait(self, waiter: _Waiter) -> None:
        self._queue.push(waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            if not self._queue.remove(waiter):  # its turn had come already
                self.give_back()
            raise


@dataclasses.dataclass(eq=False)
class _Waiter:
    client: Client
    future: asyncio.Future[None] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def _row_of(client: Client, rows: Rows[T]) -> str:
    full = len(rows) >= _MOST_TURNS and client.name not in rows
    return CROWD if full else client.name


def _size(rows: Rows[T]) -> int:
    return sum(map(len, rows.values()))


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request that waits.

    Attributes:
        client: owner of the turn.
        item: the prepared observation.
        plans: sampler plans that it may get, the best first.
        seed: seed of the noise.
        deadline: seconds on `time.monotonic`'s clock.
        arrived: time on that clock at which it was queued.
        started: time at which its batch began.
        plan: that it got: the first that met the deadline when its batch was put together.
        future: receives ``float32[T, D]``.
    """

    client: Client
    item: Any
    plans: Sequence[SamplerPlan]
    seed: int
    deadline: float
    arrived: float = 0.0
    started: float = 0.0
    plan: SamplerPlan = DEFAULT
    future: asyncio.Future[np.ndarray] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher:
    """Collects requests and hands them to the device.

    Args:
        run: items, plans and seeds to ``float32[B, T, D]``; called in ``device``.
        device: an executor of one thread.
        seconds: time of a batch by plan, the best first, and by size, measured when the programs
            were compiled.
        limits: limits of queue, batch and waiting.
        metrics: counts every batch.
    """

    def __init__(
        self,
        run: Run,
        device: Executor,
        seconds: Mapping[str, Mapping[int, float]],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._run = run
        self._device = device
        self._seconds = {name: dict(times) for name, times in seconds.items()}
        self._best = next(iter(seconds))  # plan
        self._limits = limits
        self._metrics = metrics
        self._queue: FairQueue[Ticket] = FairQueue(lambda ticket: ticket.client)
        self._changed = asyncio.Event()
        self._running = 0
        self._busy_until = 0.0
        self._peaks = [(0.0, 0), (0.0, 0)]  # (start, most at once) of two windows, latest first
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._worker:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker

    async def submit(self, ticket: Ticket) -> np.ndarray:
        """Waits for the actions ``float32[T, D]`` of a ticket.

        Raises:
            RequestError: 503; the queue is full, or the deadline cannot be met.
        """
        ticket.arrived = time.monotonic()
        self.admit(ticket.client, ticket.deadline, ticket.plans)
        displaced = self._displaced_by(ticket.client)
        if displaced is not None:
            self._queue.remove(displaced)
            displaced.future.set_exception(self._full())
        self._queue.push(ticket)
        self._note_peak()
        self._changed.set()
        self._metrics.waiting.set(len(self._queue))
        try:
            return await ticket.future
        finally:
            self._queue.remove(ticket)  # still there if the client has gone
            self._metrics.waiting.set(len(self._queue))

    def admit(self, client: Client, deadline: float, plans: Sequence[SamplerPlan] = ()) -> None:
        """Refuses early what `submit` would refuse: a full queue, or a deadline out of reach.

        A full queue still takes a client that has fewer requests in it than another: the newest of
        the longest row gives way. What counts is the quickest of the plans, or of all.
        """
        self._displaced_by(client)
        wait = self._expected_wait(client, plans)
        if time.monotonic() + wait > deadline:
            raise self._late(wait)

    def _displaced_by(self, client: Client) -> Ticket | None:
        """Returns the ticket that gives way to the client; None while there is room for both."""
        if len(self._queue) < self._limits.queue:
            return None
        victim = self._queue.victim(client)
        if victim is None:
            raise self._full()
        return victim

    def _expected_wait(self, client: Client, plans: Sequence[SamplerPlan] = ()) -> float:
        batches = self._queue.ahead(client) // self._limits.batch + 1
        running = max(0.0, self._busy_until - time.monotonic()) if self._running else 0.0
        own = min(self._time_of(1, name) for name in [p.name for p in plans] or self._seconds)
        return running + (batches - 1) * self._time_of(self._limits.batch) + own

    def _time_of(self, size: int, plan: str = "") -> float:
        """Time of a batch by a plan; of the best one where that is not known."""
        times = self._seconds.get(plan, self._seconds[self._best])
        known = [seconds for batch, seconds in times.items() if batch >= size]
        return min(known, default=0.0)

    def _full(self) -> RequestError:
        self._metrics.refused.labels("queue full").inc()
        return RequestError(
            503,
            "too many requests wait",
            field="queue",
            value=len(self._queue),
            allowed=f"at most {self._limits.queue}",
            retry_after=self._expected_wait(Client("")),
        )

    def _late(self, wait: float) -> RequestError:
        self._metrics.refused.labels("deadline").inc()
        return RequestError(
            503,
            "the deadline cannot be met",
            field="deadline_ms",
            value=f"{wait * 1000:.0f} ms are expected",
            allowed="a later deadline, or less load",
            retry_after=wait,
        )

    async def _work(self) -> None:
        while True:
            await self._gather()
            batch = self._take()
            if batch:
                await self._run_batch(batch)

    async def _gather(self) -> None:
        """Waits until a batch is worth running, or its first request has waited long enough."""
        opened: float | None = None
        while True:
            size = len(self._queue)
            if size:
                opened = time.monotonic() if opened is None else opened
                left = opened + self._limits.wait_ms / 1000 - time.monotonic()
                if size >= self._enough() or left <= 0:
                    return
            else:
                opened, left = None, None
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _enough(self) -> int:
        """Returns the number of requests that are worth waiting for.

        It is the largest number at once of late, or half of it where two halves cost the device
        little: while one half runs, the host answers and decodes the other, and the device does not
        wait for it. An accelerator takes almost as long for a half as for all.
        """
        most = min(self._limits.batch, self._peak())
        half = -(-most // 2)
        in_halves = self._time_of(half) + self._time_of(most - half)
        return half if in_halves <= _HALVES_COST * self._time_of(most) else most

    def _take(self) -> list[Ticket]:
        batch: list[Ticket] = []
        while len(self._queue) and len(batch) < self._limits.batch:
            ticket = self._queue.pop()
            if ticket.future.done():
                continue
            left = ticket.deadline - time.monotonic()
            times = {plan: self._time_of(1, plan.name) for plan in ticket.plans}
            chosen = next((plan for plan, seconds in times.items() if seconds <= left), None)
            if chosen is None:
                ticket.future.set_exception(self._late(min(times.values())))
            else:
                ticket.plan = chosen
                batch.append(ticket)
        return batch

    async def _run_batch(self, batch: list[Ticket]) -> None:
        began = time.monotonic()
        self._running = len(batch)
        sizes = collections.Counter(ticket.plan.name for ticket in batch)
        self._busy_until = began + sum(self._time_of(n, plan) for plan, n in sizes.items())
        for ticket in batch:
            ticket.started = began
        done = asyncio.get_running_loop().run_in_executor(
            self._device,
            self._run,
            [ticket.item for ticket in batch],
            [ticket.plan for ticket in batch],
            [ticket.seed for ticket in batch],
        )
        try:
            await asyncio.wait([done])
        finally:
            self._running = 0
        error = done.exception()
        if error:
            _LOG.error("a batch of %d failed", len(batch), exc_info=error)
            self._metrics.failed.inc()
        else:
            self._measure(sizes, time.monotonic() - began)
        for i, ticket in enumerate(batch):
            if ticket.future.done():
                continue
            if error:
                ticket.future.set_exception(_failure())
            elif not np.isfinite(done.result()[i]).all():
                ticket.future.set_exception(_failure("the model's answer is not finite"))
            else:
                ticket.future.set_result(done.result()[i])

    def _measure(self, sizes: Mapping[str, int], seconds: float) -> None:
        size = sum(sizes.values())
        self._metrics.batch_size.observe(size)
        self._metrics.batch_seconds.observe(seconds)
        if len(sizes) > 1:  # programs of several plans: how long each took is not known
            return
        times = self._seconds.get(next(iter(sizes)), self._seconds[self._best])
        program = min((b for b in times if b >= size), default=size)
        mean = times.get(program, seconds)
        times[program] = mean + _LATEST_SHARE * (seconds - mean)

    def _note_peak(self) -> None:
        now, at_once = time.monotonic(), len(self._queue) + self._running
        since, most = self._peaks[0]
        if now - since > _PEAK_SECONDS:
            self._peaks = [(now, at_once), self._peaks[0]]
        else:
            self._peaks[0] = (since, max(most, at_once))

    def _peak(self) -> int:
        """Largest number of requests at once in the last seconds."""
        now = time.monotonic()
        recent = (most for since, most in self._peaks if now - since <= 2 * _PEAK_SECONDS)
        return max(recent, default=1)


def _failure(error: str = "the policy failed; the server's log has the reason") -> RequestError:
    return RequestError(500, error, allowed="nothing was wrong with the request's form")
