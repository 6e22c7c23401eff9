"""The route that shows what the model is given: there only when asked for, and like the others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import json_numpy
import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.xvla_jax.serving.fakes import LIMITS, WIDTH, FakeEngine, dumps, request
from xvla_jax.errors import ConfigError
from xvla_jax.serving.app import create_app
from xvla_jax.serving.server import Door
from xvla_jax.serving.service import Service

TOKEN = "correct horse battery"


@contextmanager
def serving(*, inspect: bool, token: str | None = None) -> Iterator[tuple[TestClient, FakeEngine]]:
    engine = FakeEngine()
    service = Service(lambda: engine, LIMITS)
    app: Any = create_app(service, token, inspect=inspect)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with service.running():
            yield

    app._app.router.lifespan_context = lifespan
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, engine


def test_it_shows_the_models_inputs_and_runs_nothing() -> None:
    with serving(inspect=True) as (client, engine):
        state = np.arange(WIDTH, dtype=np.float32)
        reply = client.post("/inspect", json=request(proprio=dumps(state), step=3))
        assert reply.status_code == 200
        inputs = reply.json()
        pixels: Any = json_numpy.loads(json.dumps(inputs["pixels"]))
        assert (pixels.shape, pixels.dtype) == ((1, 8, 6, 3), np.uint8)
        assert json_numpy.loads(json.dumps(inputs["proprio"])).tolist() == state.tolist()
        assert (inputs["instruction"], inputs["steps"], inputs["domain_id"]) == (
            "pick up the bowl", 5, 3
        )  # fmt: skip
        assert inputs["hidden_channels"] == [9, 19]
        assert inputs["warnings"] == ["unknown field 'step' was ignored"]
        assert engine.batches == []
        refused = client.post("/inspect", json=request(domain_id=30))
        assert refused.status_code == 400
        assert refused.json()["detail"]["field"] == "domain_id"
        assert "/inspect" in client.get("/openapi.json").json()["paths"]


def test_it_is_off_unless_asked_for_and_needs_the_token() -> None:
    with serving(inspect=False) as (client, _):
        assert client.post("/inspect", json=request()).status_code == 404
        assert "/inspect" not in client.get("/openapi.json").json()["paths"]
    with serving(inspect=True, token=TOKEN) as (client, _):
        assert client.post("/inspect", json=request()).status_code == 401
        allowed = {"authorization": f"Bearer {TOKEN}"}
        assert client.post("/inspect", json=request(), headers=allowed).status_code == 200


def test_other_machines_need_a_token_for_it() -> None:
    with pytest.raises(ConfigError, match=r"--inspect on host 0\.0\.0\.0 needs a token"):
        Door(host="0.0.0.0", insecure=True, inspect=True)
    Door(host="0.0.0.0", token="x" * 16, inspect=True)
    Door(inspect=True)
