"""By which name a server may be called: a page that points its own name at loopback is refused."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from tests.xvla_jax.serving.fakes import LIMITS, FakeEngine
from xvla_jax.serving.app import create_app
from xvla_jax.serving.server import Door
from xvla_jax.serving.service import Service


def client(door: Door) -> TestClient:
    service = Service(FakeEngine, LIMITS)
    app: Any = create_app(service, door.token, hosts=door.hosts)
    return TestClient(app, raise_server_exceptions=False)


def _status(refusal: TestClient, host: str, path: str = "/livez") -> int:
    return refusal.get(path, headers={"host": host}).status_code


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_is_called_by_its_own_names(host: str) -> None:
    refusal = client(Door(host=host))
    for own in ("localhost", "localhost:8010", "127.0.0.1:1", "[::1]", "[::1]:8010", "LOCALHOST",
                "localhost.", " localhost "):  # fmt: skip
        assert _status(refusal, own) == 200, own
    for foreign in ("evil.example", "evil.example:8010", "127.0.0.1.evil.example", "localhost@x",
                    "10.0.0.1", "", "[::1", "localhost:x"):  # fmt: skip
        reply = refusal.get("/info", headers={"host": foreign})
        assert reply.status_code == 403, foreign
        assert reply.json()["detail"]["field"] == "Host"
        assert "--allowed_hosts" in reply.json()["detail"]["allowed"]


def test_every_route_asks_and_two_names_are_one_too_many() -> None:
    refusal = client(Door())
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/nope"):
        assert _status(refusal, "evil.example", path) == 403
    assert refusal.post("/act", json={}, headers={"host": "evil.example"}).status_code == 403
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        refusal.websocket_connect("/", headers={"host": "evil.example"}),
    ):
        pass
    assert denied.value.status_code == 403
    two: Any = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert refusal.get("/info", headers=two).status_code == 403


def test_names_of_the_operator() -> None:
    named = client(Door(allowed_hosts=("Robot.Lab",)))
    assert _status(named, "robot.lab:8010") == _status(named, "localhost") == 200
    assert _status(named, "evil.example") == 403
    assert _status(client(Door(host="127.8.8.8")), "127.8.8.8:8010") == 200
    anywhere = client(Door(host="0.0.0.0", token="x" * 16))
    assert _status(anywhere, "robot.lab") == 200, "others may know it by any name"
    fenced = client(Door(host="0.0.0.0", token="x" * 16, allowed_hosts=("robot.lab",)))
    assert (_status(fenced, "robot.lab"), _status(fenced, "evil.example")) == (200, 403)
