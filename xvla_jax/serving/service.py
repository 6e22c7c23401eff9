"""Takes a request from its bytes to its reply, for both doors; holds the server's state."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from xvla_jax.contract import UNKNOWN
from xvla_jax.errors import InputError
from xvla_jax.serving.batcher import Batcher, Ticket, Turns
from xvla_jax.serving.codecs import MOST_PARTS, ManyPartsError
from xvla_jax.serving.engine import Engine
from xvla_jax.serving.limits import Client, Clients, Limits, RequestError
from xvla_jax.serving.metrics import Metrics
from xvla_jax.serving.request import ActRequest, parse_request

_LOG = logging.getLogger(__name__)
_DECODERS = 2  # threads that decode bodies and resize images
_FEW_PARTS = (
    5000  # messages with more values are decoded by one other thread, so that none waits for them
)

Fields = Mapping[Any, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Sent:
    """A request's bytes as its door reads them; a decoder's thread calls both.

    Attributes:
        fields: decodes up to a number of values; `ManyPartsError` if there are more.
        array: converts a field's value to an array or a list, see `parse_request`.
    """

    fields: Callable[[int], Fields]
    array: Callable[[str, Any], Any]


class _Lane:
    """Decoder threads, which clients take in turns."""

    def __init__(self, threads: int, name: str, most: int) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._turns = Turns(threads)
        self._most = most

    async def decode(self, sent: Sent, engine: Engine, client: Client) -> tuple[ActRequest, Any]:
        """Decodes a request and prepares its observation."""
        await self._turns.take(client)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.pool, _decode, sent, engine, self._most
            )
        finally:
            self._turns.give_back()


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """Reply to a request.

    Attributes:
        actions: ``float32[rows, D]``.
        extras: the other fields of the reply, in plain JSON values.
    """

    actions: np.ndarray
    extras: dict[str, Any]


class Service:
    """The policy, its queue and its state: loading, ready, or draining.

    Args:
        load: builds the engine; runs in the device's thread.
        limits: limits of the server.
    """

    def __init__(self, load: Callable[[], Engine], limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.state = "loading"
        self.in_flight = 0
        self._load = load
        self._engine: Engine | None = None
        self._batcher: Batcher | None = None
        # One thread owns the device: it loads, compiles and runs, and nothing else does.
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._lanes = (_Lane(_DECODERS, "decode", _FEW_PARTS), _Lane(1, "decode-many", MOST_PARTS))
        self.clients = Clients()

    async def start(self) -> None:
        """Loads and compiles; then the state is ready.

        Raises:
            XVLAError: from `load`.
        """
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._device, self._load)
        # by plan and batch size; of most views, which come last
        seconds: dict[str, dict[int, float]] = {plan.name: {} for plan in engine.plans}
        for plan, (views, batch) in itertools.product(engine.plans, engine.programs):
            _LOG.info("compiling: %s, %d views, batch %d", plan.name, views, batch)
            # one job each, so that the server can be stopped in between
            warm = functools.partial(engine.warm, plan, views, batch)
            seconds[plan.name][batch] = await loop.run_in_executor(self._device, warm)
        self._engine = engine
        self._batcher = await Batcher(
            engine.run, self._device, seconds, self.limits, self.metrics
        ).__aenter__()
        if self.state == "loading":
            self.state = "ready"
            self.metrics.ready.set(1)

    def drain(self) -> None:
        """Takes no more requests; those in flight are answered."""
        self.state = "draining"
        self.metrics.ready.set(0)

    async def stop(self) -> None:
        """Ends the threads."""
        self.drain()
        if self._batcher:
            await self._batcher.__aexit__()
        self._device.shutdown(wait=False, cancel_futures=True)
        for lane in self._lanes:
            lane.pool.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """Starts the service for the block; for servers that need no socket before it is ready."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    @property
    def info(self) -> Mapping[str, Any]:
        """Content of ``/info``.

        Raises:
            RequestError: 503 while it is loading.
        """
        return self._ready_engine()[0].info

    def check(self, client: Client) -> None:
        """Refuses a request before its body is read.

        Raises:
            RequestError: 503; not ready, or the queue is full.
        """
        self._ready_engine()[1].admit(client, time.monotonic() + self.limits.deadline_ms / 1000)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Counts a request as in flight."""
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    async def act(self, sent: Sent, *, client: Client, began: float) -> Answer:
        """Decodes, waits for the device, answers.

        Args:
            sent: the request.
            client: owner of the turn.
            began: time of arrival, by `time.monotonic`.

        Raises:
            RequestError: the request cannot be served.
        """
        engine, batcher = self._ready_engine()
        request, item = await self._decoded(sent, engine, client)
        decoded = time.monotonic()
        seed = secrets.randbits(32) if request.seed is None else request.seed
        ticket = Ticket(client, item, request.plans, seed, began + request.deadline_ms / 1000)
        actions = await batcher.submit(ticket)
        ended = time.monotonic()
        self.metrics.actions.labels(str(request.observation["domain_id"])).inc()
        extras = {
            "request_id": request.request_id or secrets.token_hex(8),
            "model": engine.model,
            "plan": ticket.plan.name,
            "seed": seed,
            "channels": engine.channels.get(request.observation["domain_id"], UNKNOWN),
            "server_timing": {
                "decode_ms": 1000 * (decoded - began),
                "queue_ms": 1000 * (ticket.started - ticket.arrived),
                "infer_ms": 1000 * (ended - ticket.started),
                "total_ms": 1000 * (ended - began),
            },
        }
        if request.observation_time is not None:
            extras["observation_time"] = request.observation_time
        if request.warnings:
            extras["warnings"] = list(request.warnings)
        return Answer(actions[: request.num_actions], extras)

    async def inspect(self, sent: Sent, *, client: Client) -> dict[str, Any]:
        """Returns the model's inputs for a request; see ``Engine.inspect``.

        Raises:
            RequestError: the request cannot be served.
        """
        engine, _ = self._ready_engine()
        request, item = await self._decoded(sent, engine, client)
        return {
            **engine.inspect(item),
            "instruction": request.observation["instruction"],
            "plan": request.plans[0].name,
            "steps": request.steps,
            "warnings": list(request.warnings),
        }

    async def _decoded(self, sent: Sent, engine: Engine, client: Client) -> tuple[ActRequest, Any]:
        few, many = self._lanes
        try:
            return await few.decode(sent, engine, client)
        except ManyPartsError:
            return await many.decode(sent, engine, client)

    def _ready_engine(self) -> tuple[Engine, Batcher]:
        if self.state != "ready" or self._engine is None or self._batcher is None:
            self.metrics.refused.labels(self.state).inc()
            raise RequestError(
                503,
                f"the server is {self.state}",
                field="server",
                value=self.state,
                allowed="requests once /readyz says ready",
                retry_after=5.0,
            )
        return self._engine, self._batcher


def _decode(sent: Sent, engine: Engine, most: int) -> tuple[ActRequest, Any]:
    try:
        request = parse_request(sent.fields(most), engine.rules, sent.array)
        return request, engine.prepare(request.observation)
    except InputError as error:
        raise RequestError(
            400, "the observation does not fit", field=error.field, allowed=str(error)
        ) from error
    except MemoryError as error:
        raise RequestError(
            413,
            "the request needs more memory than there is",
            field="body",
            allowed="a smaller one",
        ) from error
