"""Both doors over a fake policy: the released protocol, openpi's, and every refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from tests.xvla_jax.serving.fakes import LIMITS, ROWS, WIDTH, FakeEngine, dumps, request
from xvla_jax.serving.app import create_app
from xvla_jax.serving.codecs import pack, unpack
from xvla_jax.serving.limits import RequestError
from xvla_jax.serving.service import Service

TOKEN = "correct horse battery"


@contextmanager
def serving(engine: FakeEngine | None = None, token: str | None = None) -> Iterator[TestClient]:
    service = Service(lambda: engine or FakeEngine(), LIMITS)
    app: Any = create_app(service, token)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with service.running():
            yield

    app._app.router.lifespan_context = lifespan
    with TestClient(app, raise_server_exceptions=False) as client:
        client.app_state["service"] = service
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serving() as shared:
        yield shared


@pytest.mark.parametrize("path", ["/act", "/infer"])
def test_the_released_protocol(client: TestClient, path: str) -> None:
    reply = client.post(path, json=request(request_id="r1", observation_time=2.5))
    assert reply.status_code == 200
    content = reply.json()
    assert np.shape(content["action"]) == (ROWS, WIDTH)
    assert content["action"][0][:4] == [5.0, 11.0, 3.0, 7.0]
    assert (content["request_id"], content["observation_time"], content["seed"]) == ("r1", 2.5, 11)
    assert content["model"] == "fake"
    assert content["server_timing"].keys() == {"decode_ms", "queue_ms", "infer_ms", "total_ms"}
    assert "warnings" not in content
    assert content["channels"] == [{"name": "grip", "unit": "deg", "low": "open"}]
    assert client.post(path, json=request(domain_id=0)).json()["channels"] == "unknown"


def test_the_example_of_the_released_readme(client: TestClient) -> None:
    """Its proprio has 7 zeros where 20 numbers are needed; the released server fails on it."""
    payload = {
        "proprio": dumps(np.zeros(7, np.float32)),
        "language_instruction": "Move the gripper to the target position",
        "image0": dumps(np.zeros((256, 256, 3), np.uint8)),
        "domain_id": 0,
        "steps": 10,
    }
    reply = client.post("/act", json=payload).json()
    assert np.shape(reply["action"]) == (ROWS, WIDTH)
    assert "read as no state" in reply["warnings"][0]


def test_num_actions_cuts_and_a_chosen_seed_is_returned(client: TestClient) -> None:
    reply = client.post("/act", json=request(num_actions=2, seed=None)).json()
    assert len(reply["action"]) == 2
    assert reply["action"][0][1] == np.float32(reply["seed"])


def test_probes_info_and_metrics(client: TestClient) -> None:
    assert client.get("/livez").json() == {"state": "ready"}
    assert client.get("/readyz").status_code == 200
    assert client.get("/info").json()["domains"] == [0, 3, 29]
    assert client.get("/healthz").text == "OK\n"
    client.post("/act", json=request())
    text = client.get("/metrics").text
    assert 'xvla_requests_total{door="http",status="200"}' in text
    assert "xvla_ready 1.0" in text
    assert 'xvla_chunks_total{domain="3"}' in text


def _error(reply: Any, status: int, field: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    content = reply.json()
    assert content.keys() == {"error", "detail"}
    assert content["detail"].keys() == {"field", "value", "allowed"}
    assert content["detail"]["field"] == field
    assert "Traceback" not in reply.text
    return content


JSON = {"content-type": "application/json"}
HOSTILE: list[tuple[dict[str, Any], int, str]] = [
    ({"json": request(domain_id=30)}, 400, "domain_id"),
    ({"json": request(image0="/etc/passwd")}, 400, "image0"),
    ({"json": request(language_instruction="misfit")}, 400, ""),
    ({"content": b"{", "headers": JSON}, 400, "body"),
    ({"content": b"", "headers": JSON}, 400, "body"),
    ({"content": b"\xff" * 100, "headers": JSON}, 400, "body"),
    ({"content": b"[" * 100_000, "headers": JSON}, 400, "body"),
    ({"content": b"x" * 400_001, "headers": JSON}, 413, "body"),
    ({"content": iter([b"x" * 200_000] * 4), "headers": JSON}, 413, "body"),
    ({"content": b"{}"}, 415, "Content-Type"),
    ({"data": {"a": "b"}}, 415, "Content-Type"),
    ({"json": {}, "headers": {"content-type": "text/plain"}}, 415, "Content-Type"),
    ({"json": {}, "headers": {"content-encoding": "gzip"}}, 415, "Content-Encoding"),
    ({"json": {}, "headers": {"origin": "http://evil.example"}}, 403, "Origin"),
    ({"json": request(), "headers": {"x-deadline-ms": "soon"}}, 400, "deadline_ms"),
]


@pytest.mark.parametrize(("arguments", "status", "field"), HOSTILE)
def test_a_hostile_request_is_refused(
    client: TestClient, arguments: dict[str, Any], status: int, field: str
) -> None:
    _error(client.post("/act", **arguments), status, field)
    assert client.post("/act", json=request()).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/act", 405),
        ("POST", "/nope", 404),
        ("PUT", "/infer", 405),
        ("POST", "/act/", 404),
        ("GET", "/docs", 404),
    ],
)
def test_other_routes_answer_in_the_same_shape(
    client: TestClient, method: str, path: str, status: int
) -> None:
    _error(client.request(method, path), status, f"{method} {path}")


def test_the_token_is_asked_for_everywhere_but_at_probes() -> None:
    with serving(token=TOKEN) as client:
        for method, path in (
            ("POST", "/act"), ("GET", "/info"), ("GET", "/metrics"), ("GET", "/openapi.json"),
            ("GET", "/nope"),
        ):  # fmt: skip
            _error(client.request(method, path), 401, "Authorization")
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        for wrong in (f"Bearer {TOKEN[:-1]}", "Bearer ", TOKEN, "Basic eDp5", "Bearer \xe9"):
            headers = [(b"authorization", wrong.encode("latin-1"))]
            reply = client.get("/info", headers=headers)  # pyright: ignore[reportArgumentType] raw bytes
            _error(reply, 403, "Authorization")
        for right in (f"Bearer {TOKEN}", f"Api-Key {TOKEN}", f"bearer {TOKEN}"):
            assert client.get("/info", headers={"authorization": right}).status_code == 200
        with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/"):
            pass
        assert denied.value.status_code == 401
        with client.websocket_connect("/", headers={"authorization": f"Api-Key {TOKEN}"}) as socket:
            assert unpack(socket.receive_bytes())["model"] == "fake"


def test_503_until_ready_and_while_draining() -> None:
    with serving() as client:
        service = client.app_state["service"]
        for state in ("loading", "draining"):
            service.state = state
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 503
            reply = client.post("/act", json=request())
            _error(reply, 503, "server")
            assert int(reply.headers["retry-after"]) >= 1
            with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/"):
                pass
            assert denied.value.status_code == 503


def test_a_deadline_that_cannot_be_met_is_a_503() -> None:
    with serving(FakeEngine(seconds=0.2)) as client:
        ways: list[dict[str, Any]] = [
            {"json": request(deadline_ms=50)},
            {"json": request(), "headers": {"x-deadline-ms": "50"}},
        ]
        for late in ways:
            reply = client.post("/act", **late)
            _error(reply, 503, "deadline_ms")
            assert int(reply.headers["retry-after"]) >= 1
        assert client.post("/act", json=request(deadline_ms=5000)).status_code == 200


def test_a_broken_policy_is_a_500_without_its_insides() -> None:
    engine = FakeEngine()
    engine.error = RuntimeError("secret path")
    with serving(engine) as client:
        reply = client.post("/act", json=request())
        assert "secret" not in json.dumps(_error(reply, 500, ""))
        engine.error = None
        assert client.post("/act", json=request()).status_code == 200


def _observation(**changes: Any) -> dict[str, Any]:
    return {
        "observation/image": np.full((8, 6, 3), 7, np.uint8),
        "observation/wrist_image": np.zeros((2, 2, 3), np.uint8),
        "observation/state": np.zeros(WIDTH),
        "prompt": "push",
        "domain_id": 3,
        "seed": 11,
        "steps": 5,
    } | changes


def test_the_websocket_of_openpi(client: TestClient) -> None:
    """Metadata first, then observation in, actions out; framed as openpi-client packs."""
    with client.websocket_connect("/") as socket:
        assert unpack(socket.receive_bytes()) == {"model": "fake", "domains": [0, 3, 29]}
        for again in (False, True):
            socket.send_bytes(pack(_observation()))
            data = socket.receive_bytes()
            reply = unpack(data)
            assert reply["actions"].shape == (ROWS, WIDTH)
            assert reply["actions"][0, :4].tolist() == [5.0, 11.0, 3.0, 7.0]
            assert reply["server_timing"]["infer_ms"] >= 0
            assert reply["channels"] == [{"name": "grip", "unit": "deg", "low": "open"}]
            assert ("prev_total_ms" in reply["server_timing"]) is again
            raw = msgpack.unpackb(data)["actions"]
            assert raw.keys() == {b"__ndarray__", b"data", b"dtype", b"shape"}
            assert (raw[b"dtype"], raw[b"shape"]) == ("<f4", [ROWS, WIDTH])


def test_the_address_can_name_the_domain(client: TestClient) -> None:
    with client.websocket_connect("/?domain_id=29") as socket:
        socket.receive_bytes()
        observation = _observation()
        del observation["domain_id"]
        socket.send_bytes(pack(observation))
        assert unpack(socket.receive_bytes())["actions"][0, 2] == 29


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pack(_observation(domain_id=30)), "domain_id"),
        (pack(_observation(prompt="")), "language_instruction"),
        (pack(_observation(image2="/etc/passwd")), "image2"),
        (pack(_observation(image2=np.zeros((2, 2), np.uint8))), "image2"),
        (b"\xc1", "message"),
        (b"", "message"),
        ("text", "message"),
    ],
)
def test_a_bad_message_gets_a_text_and_the_end(
    client: TestClient, message: bytes | str, field: str
) -> None:
    with client.websocket_connect("/") as socket:
        socket.receive_bytes()
        send: Any = socket.send_text if isinstance(message, str) else socket.send_bytes
        send(message)
        assert json.loads(socket.receive_text())["detail"]["field"] == field
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_bytes()
        assert closed.value.code == 1008


def test_a_browser_gets_no_websocket(client: TestClient) -> None:
    headers = {"origin": "http://evil.example"}
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("/", headers=headers),
    ):
        pass
    assert denied.value.status_code == 403


def test_openapi_names_the_errors(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    act = described["paths"]["/act"]["post"]
    assert act["responses"].keys() == {
        *["200", "400", "401", "403", "408", "413", "415", "500", "503"]
    }
    assert "422" not in json.dumps(described)
    assert "proprio" in act["requestBody"]["content"]["application/json"]["schema"]["required"]


def test_a_service_that_cannot_load_says_why() -> None:
    def load() -> FakeEngine:
        raise RequestError(400, "no such checkpoint")

    async def main() -> None:
        with pytest.raises(RequestError, match="no such checkpoint"):
            await Service(load, LIMITS).start()

    asyncio.run(main())
