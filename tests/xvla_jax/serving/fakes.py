"""A policy that answers at once, and requests as X-VLA's clients make them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import uvicorn

from xvla_jax.errors import InputError
from xvla_jax.plans import DEFAULT, SamplerPlan
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.request import Rules
from xvla_jax.serving.server import Door, uvicorn_config
from xvla_jax.serving.service import Service

DOOR = Door()
ROWS, WIDTH = 4, 20
LIMITS = Limits(body_bytes=400_000, image_pixels=100_000, steps=20, queue=8, batch=4, wait_ms=20)


class FakeEngine:
    """Actions are (steps, seed, domain, mean of the first image, 0 ...) in every row,
    behind the committed rows of a prefix.

    Args:
        limits: of the server.
        seconds: that a batch takes.
        plans: of the sampler.
    """

    def __init__(
        self,
        limits: Limits = LIMITS,
        seconds: float = 0.0,
        plans: Sequence[SamplerPlan] = (DEFAULT,),
    ) -> None:
        self.rules = Rules(
            num_views=3,
            views=3,
            widths=(WIDTH,),
            num_actions=ROWS,
            domains=frozenset({0, 3, 29}),
            num_domains=30,
            limits=limits,
            plans={plan.name: plan for plan in plans},
        )
        self.info: Mapping[str, Any] = {"model": "fake", "domains": [0, 3, 29]}
        self.model = "fake"
        self.channels: Mapping[int, Any] = {3: [{"name": "grip", "unit": "deg", "low": "open"}]}
        self.programs: Sequence[tuple[int, int]] = [(1, 1), (1, 4)]
        self.plans: Sequence[SamplerPlan] = tuple(plans)
        self.seconds = seconds
        self.batches: list[list[int]] = []  # seeds
        self.hold = threading.Event()  # cleared, batches do not end
        self.hold.set()
        self.error: Exception | None = None

    def prepare(self, observation: Any) -> Any:
        """Refuses one instruction, as a policy may."""
        if observation["instruction"] == "misfit":
            raise InputError("the observation is a misfit")
        return observation

    def run(
        self, items: Sequence[Any], plans: Sequence[SamplerPlan], seeds: Sequence[int]
    ) -> np.ndarray:
        """Takes its time."""
        self.batches.append(list(seeds))
        self.hold.wait(10)
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        actions = np.zeros((len(items), ROWS, WIDTH), np.float32)
        for row, item, plan, seed in zip(actions, items, plans, seeds, strict=True):
            row[:, :4] = plan.steps, seed, item["domain_id"], item["images"][0].mean()
            kept = item.get("prefix_committed", 0)
            row[:kept] = item.get("prefix", row)[:kept]
        return actions

    def inspect(self, item: Any) -> dict[str, Any]:
        """Returns the inputs that a policy would."""
        return {
            "pixels": np.stack(item["images"]),
            "view_mask": np.array([True, False, False]),
            "input_ids": np.array([0, 2], np.int32),
            "proprio": item["proprio"],
            "hidden_channels": [9, 19],
            "domain_id": item["domain_id"],
        }

    def warm(self, plan: SamplerPlan, views: int, batch: int) -> float:
        """Nothing to compile."""
        return self.seconds


@contextlib.contextmanager
def listening(limits: Limits, service: Service | None = None, door: Door = DOOR) -> Iterator[int]:
    """Serves as `serve` configures it, on a free port of loopback; yields the port."""
    service = service or Service(lambda: FakeEngine(limits), limits)
    config = uvicorn_config(service, door)
    config.port = 0
    server = uvicorn.Server(config)

    async def serve() -> None:
        async with service.running():
            await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def dumps(array: Any) -> str:
    """Returns an array as ``json_numpy.dumps`` writes it."""
    value = np.asarray(array)
    return json.dumps(
        {
            "__numpy__": base64.b64encode(value.tobytes()).decode(),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    )


def request(**changes: Any) -> dict[str, Any]:
    """A good request; a change to None leaves the field out."""
    fields = {
        "proprio": dumps(np.zeros(WIDTH, np.float32)),
        "language_instruction": "pick up the bowl",
        "image0": dumps(np.full((8, 6, 3), 7, np.uint8)),
        "domain_id": 3,
        "steps": 5,
        "seed": 11,
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}
