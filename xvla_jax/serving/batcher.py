"""Which requests run together, and when: fair between clients, bounded, and with deadlines.

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

from xvla_jax.serving.limits import CROWD, Client, Limits, RequestError
from xvla_jax.serving.metrics import Metrics

T = TypeVar("T")
_MOST_TURNS: Final = 16  # of one address; whoever comes then shares the turn of the crowd

Rows = collections.OrderedDict[str, collections.deque[T]]


class FairQueue(Generic[T]):
    """First in, first out for each client; round robin among addresses, and inside of each.

    An address has one turn however many names its clients give themselves.

    Args:
        client_of: whose an item is.
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
        """The next item of the client whose turn it is; client and address go to the end."""
        address, rows = next(iter(self._waiting.items()))
        name, items = next(iter(rows.items()))
        item = items.popleft()
        rows.move_to_end(name)
        self._waiting.move_to_end(address)
        self._taken(address, name)
        return item

    def remove(self, item: T) -> bool:
        """Takes an item out wherever it stands; False if it is not there."""
        address = self._client_of(item).address
        for name, items in self._waiting.get(address, {}).items():
            if item in items:
                items.remove(item)
                self._taken(address, name)
                return True
        return False

    def ahead(self, client: Client) -> int:
        """How many items would come before a new one of this client."""
        rows = self._waiting.get(client.address, collections.OrderedDict())
        row = _row_of(client, rows)
        own = len(rows.get(row, ()))
        before = own + sum(min(len(items), own + 1) for n, items in rows.items() if n != row)
        others = (_size(r) for address, r in self._waiting.items() if address != client.address)
        return before + sum(min(size, before + 1) for size in others)

    def victim(self, client: Client) -> T | None:
        """The item that gives way to one of this client where there is no room, if one does.

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
    """A lock that so many may hold; the others wait as in a `FairQueue`.

    Args:
        slots: how many.
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


Run = Callable[[Sequence[Any], Sequence[int], Sequence[int]], np.ndarray]

_LOG = logging.getLogger(__name__)
_PEAK_SECONDS = 1.0  # for how long the number of requests at once is remembered
_LATEST_SHARE = 0.2  # of the last batch in the mean of batch times
# Two halves may take the device so many times as long as the whole; see `Batcher._enough`.
_HALVES_COST = 1.25


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request that waits.

    Attributes:
        client: whose turn it counts as.
        item: what the policy prepared.
        steps: denoising steps.
        seed: of the noise.
        deadline: on `time.monotonic`'s clock, seconds.
        arrived: on the same clock, when it was queued.
        started: when its batch began.
        future: ``float32[T, D]`` in the end.
    """

    client: Client
    item: Any
    steps: int
    seed: int
    deadline: float
    arrived: float = 0.0
    started: float = 0.0
    future: asyncio.Future[np.ndarray] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher:
    """Collects requests and hands them to the device.

    Args:
        run: items, steps and seeds to ``float32[B, T, D]``; called in ``device``.
        device: an executor of one thread.
        seconds: of a batch by size, as measured when the programs were compiled.
        limits: of queue, batch and waiting.
        metrics: told of every batch.
    """

    def __init__(
        self,
        run: Run,
        device: Executor,
        seconds: Mapping[int, float],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._run = run
        self._device = device
        self._seconds = dict(seconds)
        self._limits = limits
        self._metrics = metrics
        self._queue: FairQueue[Ticket] = FairQueue(lambda ticket: ticket.client)
        self._changed = asyncio.Event()
        self._running = 0
        self._busy_until = 0.0
        self._peaks = [
            (0.0, 0),
            (0.0, 0),
        ]  # (since, most at once), latest first
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
        self.admit(ticket.client, ticket.deadline)
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

    def admit(self, client: Client, deadline: float) -> None:
        """Refuses early what `submit` would refuse: a full queue, or a deadline out of reach.

        A full queue still takes a client that has fewer requests in it than another: the newest of
        the longest row gives way.
        """
        self._displaced_by(client)
        if time.monotonic() + self._expected_wait(client) > deadline:
            raise self._late(self._expected_wait(client))

    def _displaced_by(self, client: Client) -> Ticket | None:
        """Who gives way to the client; None while there is room for both."""
        if len(self._queue) < self._limits.queue:
            return None
        victim = self._queue.victim(client)
        if victim is None:
            raise self._full()
        return victim

    def _expected_wait(self, client: Client) -> float:
        batches = self._queue.ahead(client) // self._limits.batch + 1
        running = max(0.0, self._busy_until - time.monotonic()) if self._running else 0.0
        return running + (batches - 1) * self._time_of(self._limits.batch) + self._time_of(1)

    def _time_of(self, size: int) -> float:
        known = [seconds for batch, seconds in self._seconds.items() if batch >= size]
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
        """Until there is a batch: as many as are worth waiting for, or the wait is over."""
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
        """As many as lately were there at once, or half of them where that costs the device little.

        While one half runs, the other is answered, asks again and is decoded: work of the host that
        else has the device wait. An accelerator takes as long for a half as for the whole.
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
            expected = self._time_of(1)
            if time.monotonic() + expected > ticket.deadline:
                ticket.future.set_exception(self._late(expected))
            else:
                batch.append(ticket)
        return batch

    async def _run_batch(self, batch: list[Ticket]) -> None:
        began = time.monotonic()
        self._running = len(batch)
        self._busy_until = began + self._time_of(len(batch))
        for ticket in batch:
            ticket.started = began
        done = asyncio.get_running_loop().run_in_executor(
            self._device,
            self._run,
            [ticket.item for ticket in batch],
            [ticket.steps for ticket in batch],
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
            self._measure(len(batch), time.monotonic() - began)
        for i, ticket in enumerate(batch):
            if ticket.future.done():
                continue
            if error:
                ticket.future.set_exception(_failure())
            elif not np.isfinite(done.result()[i]).all():
                ticket.future.set_exception(_failure("the model's answer is not finite"))
            else:
                ticket.future.set_result(done.result()[i])

    def _measure(self, size: int, seconds: float) -> None:
        self._metrics.batch_size.observe(size)
        self._metrics.batch_seconds.observe(seconds)
        program = min((b for b in self._seconds if b >= size), default=size)
        mean = self._seconds.get(program, seconds)
        self._seconds[program] = mean + _LATEST_SHARE * (seconds - mean)

    def _note_peak(self) -> None:
        now, at_once = time.monotonic(), len(self._queue) + self._running
        since, most = self._peaks[0]
        if now - since > _PEAK_SECONDS:
            self._peaks = [(now, at_once), self._peaks[0]]
        else:
            self._peaks[0] = (since, max(most, at_once))

    def _peak(self) -> int:
        """Most requests at once of late: as many are worth waiting for."""
        now = time.monotonic()
        recent = (most for since, most in self._peaks if now - since <= 2 * _PEAK_SECONDS)
        return max(recent, default=1)


def _failure(error: str = "the policy failed; the server's log has the reason") -> RequestError:
    return RequestError(500, error, allowed="nothing was wrong with the request's form")
