"""What both doors share: from a request's bytes to its reply."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from xvla_jax.contract import UNKNOWN
from xvla_jax.errors import InputError
from xvla_jax.serving.batcher import Batcher, Ticket
from xvla_jax.serving.engine import Engine
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.metrics import Metrics
from xvla_jax.serving.refusal import RequestError
from xvla_jax.serving.request import ActRequest, Rules, parse_request

_LOG = logging.getLogger(__name__)
_DECODERS = 2  # threads that decode bodies and resize images

Decode = Callable[[], Mapping[Any, Any]]
ArrayOf = Callable[[str, Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a request gets.

    Attributes:
        actions: ``float32[rows, D]``.
        extras: what else the reply says, in plain JSON values.
    """

    actions: np.ndarray
    extras: dict[str, Any]


class Service:
    """The policy, its queue and its state: loading, ready, or draining.

    Args:
        load: makes the engine; runs in the device's thread.
        limits: of the server.
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
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    async def start(self) -> None:
        """Loads and compiles; the state is ready after it.

        Raises:
            XVLAError: what `load` raises.
        """
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._device, self._load)
        seconds: dict[int, float] = {}  # of most views, which come last
        for views, batch in engine.programs:
            _LOG.info("compiling: %d views, batch %d", views, batch)
            # one job each, so that the server can be stopped in between
            seconds[batch] = await loop.run_in_executor(self._device, engine.warm, views, batch)
        self._engine = engine
        self._batcher = await Batcher(
            engine.run, self._device, seconds, self.limits, self.metrics
        ).__aenter__()
        if self.state == "loading":
            self.state = "ready"
            self.metrics.ready.set(1)

    def drain(self) -> None:
        """Takes no more requests; those in flight go on."""
        self.state = "draining"
        self.metrics.ready.set(0)

    async def stop(self) -> None:
        """Ends the threads."""
        self.drain()
        if self._batcher:
            await self._batcher.__aexit__()
        self._device.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """Started and ready inside; for tests and for servers that need no early socket."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    @property
    def info(self) -> Mapping[str, Any]:
        """Of the engine.

        Raises:
            RequestError: 503 while it is loading.
        """
        return self._ready_engine()[0].info

    def check(self, client: str) -> None:
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

    async def act(self, decode: Decode, array: ArrayOf, *, client: str, began: float) -> Answer:
        """Decodes, waits for the device, answers.

        Args:
            decode: makes the fields of the bytes.
            array: as `parse_request` has it.
            client: whose turn it counts as.
            began: when the request arrived, by `time.monotonic`.

        Raises:
            RequestError: the request cannot be served.
        """
        engine, batcher = self._ready_engine()
        request, item = await asyncio.get_running_loop().run_in_executor(
            self._decoders, _decode, decode, array, engine.rules, engine.prepare
        )
        decoded = time.monotonic()
        seed = secrets.randbits(32) if request.seed is None else request.seed
        ticket = Ticket(client, item, request.steps, seed, began + request.deadline_ms / 1000)
        actions = await batcher.submit(ticket)
        ended = time.monotonic()
        self.metrics.actions.labels(str(request.observation["domain_id"])).inc()
        extras = {
            "request_id": request.request_id or secrets.token_hex(8),
            "model": engine.model,
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

    async def inspect(self, decode: Decode, array: ArrayOf) -> dict[str, Any]:
        """What the model would be given for a request; see ``Engine.inspect``.

        Raises:
            RequestError: the request cannot be served.
        """
        engine, _ = self._ready_engine()
        request, item = await asyncio.get_running_loop().run_in_executor(
            self._decoders, _decode, decode, array, engine.rules, engine.prepare
        )
        return {
            **engine.inspect(item),
            "instruction": request.observation["instruction"],
            "steps": request.steps,
            "warnings": list(request.warnings),
        }

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


def _decode(
    decode: Decode, array: ArrayOf, rules: Rules, prepare: Callable[[Any], Any]
) -> tuple[ActRequest, Any]:
    request = parse_request(decode(), rules, array)
    try:
        return request, prepare(request.observation)
    except InputError as error:
        raise RequestError(
            400, "the observation does not fit", field=error.field, allowed=str(error)
        ) from error
