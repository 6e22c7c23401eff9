"""The client of eval/ against the server's own doors, over real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from eval.client.remote import PolicyUnavailableError, RemotePolicy
from eval.client.transports import RequestRefusedError
from eval.pictures import resize_bicubic
from tests.xvla_jax.serving.fakes import LIMITS, ROWS, WIDTH, FakeEngine, listening
from xvla_jax.plans import DEFAULT, PLANS
from xvla_jax.serving.server import Door
from xvla_jax.serving.service import Service

TOKEN = "correct horse battery"
CONTRACT = {"domain_id": 3, "rotation_layout": "contiguous", "views": ("front",)}
SCHEMES = ("http", "ws")


@contextmanager
def reachable(engine: FakeEngine, token: str | None = None) -> Iterator[tuple[Service, int]]:
    """Serves the contract that `RemotePolicy` compares; yields the service and its port."""
    engine.info = {
        "model": "fake",
        "model_sha256": "f" * 64,
        "contracts": {"3": {**CONTRACT, "views": ["front"]}},
        "num_actions": ROWS,
        "action_width": WIDTH,
        "image_size": 4,
        "resample": 3,
        "limits": {"deadline_ms": LIMITS.deadline_ms},
        "prefix": {"rows": ROWS, "domains": [3]},
    }
    service = Service(lambda: engine, LIMITS)
    with listening(LIMITS, service, Door(token=token)) as port:
        yield service, port


def observation(number: int = 7) -> dict[str, Any]:
    image = np.random.default_rng(number).integers(0, 256, (8, 6, 3), np.uint8)
    return {
        "images": [image],
        "instruction": "push",
        "proprio": np.zeros(WIDTH, np.float32),
        "domain_id": 3,
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_chunk_over_each_door(scheme: str, encoding: str) -> None:
    with reachable(FakeEngine(), TOKEN) as (_, port):
        options: dict[str, Any] = {"expected": CONTRACT, "token": TOKEN, "steps": 5}
        url = f"{scheme}://127.0.0.1:{port}"
        policy = RemotePolicy(url, encoding=encoding, **options)
        chunks = policy.act([observation(1), observation(2)], seed=[11, 12])
        assert chunks.shape == (2, ROWS, WIDTH)
        assert chunks[:, 0, :3].tolist() == [[5, 11, 3], [5, 12, 3]]
        mean = observation(2)["images"][0].mean()
        np.testing.assert_allclose(chunks[1, 0, 3], mean, rtol=1e-6)
        small = RemotePolicy(url, encoding=encoding, resize=True, **options)
        mean = resize_bicubic(observation(2)["images"][0], 4).mean()
        np.testing.assert_allclose(small.act([observation(2)], seed=[1])[0, 0, 3], mean, rtol=1e-6)
        for one in (policy, small):
            one.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_plan_over_each_door(scheme: str) -> None:
    with reachable(FakeEngine(plans=[DEFAULT, PLANS["frozen3"]])) as (_, port):
        policy = RemotePolicy(f"{scheme}://127.0.0.1:{port}", expected=CONTRACT, plan="frozen3")
        assert policy.act([observation()], seed=[9])[0, 0, 0] == 3
        policy.plan = None
        assert policy.act([observation()], seed=[9])[0, 0, 0] == 10
        policy.plan = "frozen10"
        with pytest.raises(RequestRefusedError, match="plans of this server: exact10, frozen3"):
            policy.act([observation()], seed=[9])
        policy.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_prefix_over_each_door(scheme: str) -> None:
    with reachable(FakeEngine()) as (_, port):
        policy = RemotePolicy(f"{scheme}://127.0.0.1:{port}", expected=CONTRACT)
        rows = np.random.default_rng(0).random((3, WIDTH)).astype(np.float32)
        asked = {**observation(), "prefix": rows, "prefix_committed": 2}
        chunks = policy.act([asked], seed=[9])[0]
        np.testing.assert_array_equal(chunks[:2], rows[:2])
        assert chunks[2, 1] == 9
        with pytest.raises(RequestRefusedError, match=r"field prefix, value 'float32\[5, 20\]'"):
            policy.act([{**asked, "prefix": np.zeros((ROWS + 1, WIDTH))}], seed=[9])
        policy.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_refusal_differs_from_silence(scheme: str) -> None:
    engine = FakeEngine()
    with reachable(engine, TOKEN) as (service, port):
        url = f"{scheme}://127.0.0.1:{port}"
        with pytest.raises(RequestRefusedError, match=r"\(401\).*Authorization"):
            RemotePolicy(url, expected=CONTRACT)
        with pytest.raises(RequestRefusedError, match=r"\(403\)"):
            RemotePolicy(url, expected=CONTRACT, token="wrong")
        slept: list[float] = []
        policy = RemotePolicy(
            url, expected=CONTRACT, token=TOKEN, retries=1, sleep=slept.append, timeout_s=2.0
        )
        with pytest.raises(RequestRefusedError, match="language_instruction"):
            policy.act([{**observation(), "instruction": ""}], seed=[0])
        assert policy.act([observation()], seed=[0]).shape == (1, ROWS, WIDTH)
        engine.error = RuntimeError("broken")
        with pytest.raises(RequestRefusedError, match=r"\(500\)"):
            policy.act([observation()], seed=[0])
        engine.error = None
        assert not slept
        service.state = "draining"
        with pytest.raises(PolicyUnavailableError, match=r"2 attempts; .*busy \(503\)"):
            policy.act([observation()], seed=[0])
        assert slept == [5.0]  # as the server's Retry-After says
        service.state = "ready"
        assert policy.act([observation()], seed=[0]).shape == (1, ROWS, WIDTH)
        policy.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_late_answer_is_never_taken_for_the_next(scheme: str) -> None:
    engine = FakeEngine()
    with reachable(engine) as (_, port):
        policy = RemotePolicy(
            f"{scheme}://127.0.0.1:{port}", expected=CONTRACT, retries=0, timeout_s=0.3
        )
        engine.hold.clear()
        with pytest.raises(PolicyUnavailableError):
            policy.act([observation()], seed=[1])
        engine.hold.set()
        time.sleep(0.2)
        assert policy.act([observation()], seed=[2])[0, 0, 1] == 2
        policy.close()
