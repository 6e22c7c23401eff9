"""A real server process over real sockets, with the tiny model."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import json_numpy
import numpy as np
import pytest
import requests
import schemathesis
from schemathesis.checks import CHECKS
from websockets.sync.client import connect

from benchmarks.serving.attacks import beside
from benchmarks.serving.memory import peaks
from benchmarks.serving.server_process import Server, server
from configs import models
from scripts.random_weights import write_random_checkpoint
from tests.quick_compile import QUICK_COMPILE
from xvla_jax.config import XVLAConfig
from xvla_jax.policy import Policy
from xvla_jax.processor import Processor
from xvla_jax.serving.codecs import pack, unpack

pytestmark = pytest.mark.slow

_FLAGS = ("--device=cpu", "--views=2", "--max_batch=4", "--max_wait_ms=20")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shape = dataclasses.replace(models.TINY, num_actions=30)
    config = XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d"))
    processor = Processor(image_size=32, text_length=12)
    write_random_checkpoint(
        folder, config, processor, seed=0, dtype="float32", on_tensor=lambda *_: None
    )
    return folder


@pytest.fixture(scope="module")
def running(checkpoint: Path) -> Iterator[Server]:
    with server(checkpoint, _FLAGS, xla_flags=QUICK_COMPILE) as one:
        yield one


def _url(running: Server, path: str) -> str:
    return f"http://127.0.0.1:{running.port}{path}"


def _observation(number: int, views: int, domain: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "images": [rng.integers(0, 256, (40, 48, 3), np.uint8) for _ in range(views)],
        "instruction": f"pick up bowl {number}",
        "proprio": rng.normal(0, 0.3, 20).astype(np.float32),
        "domain_id": domain,
    }


def _payload(observation: dict[str, Any], **more: Any) -> dict[str, Any]:
    images = {f"image{i}": json_numpy.dumps(v) for i, v in enumerate(observation["images"])}
    return {
        "language_instruction": observation["instruction"],
        "proprio": json_numpy.dumps(observation["proprio"]),
        "domain_id": observation["domain_id"],
        **images,
        **more,
    }


def test_the_released_readme_runs_unchanged(running: Server) -> None:
    """Its own lines, with requests and json_numpy and nothing of ours."""
    payload = {
        "proprio": json_numpy.dumps(np.zeros(7, np.float32)),
        "language_instruction": "Move the gripper to the target position",
        "image0": json_numpy.dumps(np.zeros((256, 256, 3), np.uint8)),
        "domain_id": 0,
        "steps": 10,
    }
    result = requests.post(_url(running, "/act"), json=payload, timeout=60).json()
    assert np.shape(result["action"]) == (30, 20)


def test_answers_are_the_policys_whatever_the_company(running: Server, checkpoint: Path) -> None:
    """Robots of 1 and 2 views, 3 domains and 3 numbers of steps at once, over both doors."""
    cases = [(_observation(i, 1 + i % 2, i % 3), 1 + i % 3, 100 + i) for i in range(12)]

    def over_http(case: tuple[dict[str, Any], int, int]) -> np.ndarray:
        payload = _payload(case[0], steps=case[1], seed=case[2])
        reply = requests.post(_url(running, "/infer"), json=payload, timeout=60)
        assert reply.status_code == 200, reply.text
        return np.asarray(reply.json()["action"], np.float32)

    def over_websocket(case: tuple[dict[str, Any], int, int]) -> np.ndarray:
        with connect(f"ws://127.0.0.1:{running.port}", compression=None, max_size=None) as ws:
            assert unpack(_binary(ws.recv()))["num_actions"] == 30
            ws.send(pack({**case[0], "steps": case[1], "seed": case[2]}))
            return unpack(_binary(ws.recv()))["actions"]

    with ThreadPoolExecutor(12) as pool:
        doors = [list(pool.map(door, cases)) for door in (over_http, over_websocket)]
    policy = Policy.from_pretrained(checkpoint)
    for i, (observation, steps, seed) in enumerate(cases):
        expected: Any = policy.act([observation], steps=steps, seed=seed)[0]  # pyright: ignore[reportArgumentType] a plain dict
        for reply in doors:
            np.testing.assert_allclose(reply[i], expected, atol=1e-5, err_msg=str(i))
    sizes = requests.get(_url(running, "/metrics"), timeout=10).text
    assert 'xvla_batch_size_bucket{le="1.0"}' in sizes


def _binary(message: str | bytes) -> bytes:
    assert isinstance(message, bytes), message
    return message


def test_sockets_that_misbehave_leave_the_server_alone(running: Server) -> None:
    body = json.dumps(_payload(_observation(0, 1, 0))).encode()
    head = b"POST /act HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    hostile = {
        b"\x16\x03\x01\x02\x00\x01\x00": b"400",
        b"GET /" + b"a" * 400_000: b"400",
        b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 60_000: b"400",
        head + b"content-length: 99999999999999\r\n\r\n": b"413",
        head + b"content-length: -1\r\n\r\n": b"400",
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n": b"400",
        head + b"content-length: 5\r\n\r\n{": None,  # hangs up before its body is there
        head + f"content-length: {len(body)}\r\n\r\n".encode() + body: None,  # or its answer
    }
    for data, status in hostile.items():
        with socket.create_connection(("127.0.0.1", running.port), 20) as raw:
            raw.sendall(data)
            if status:
                assert raw.recv(4096).startswith(b"HTTP/1.1 " + status), data[:60]
    assert requests.get(_url(running, "/readyz"), timeout=10).status_code == 200
    assert "Traceback" not in running.log


@pytest.mark.parametrize("attack", ["fresh ids", "idle sockets", "nested msgpack", "lists"])
def test_a_robot_beside_an_attack_is_served(running: Server, attack: str) -> None:
    """The bound on a quiet machine is 100 ms; tests share theirs with others."""
    seen = {**_observation(0, 2, 0), "seed": 0}
    noticed = beside(running, attack, seconds=5.0, observation=seen)
    assert not noticed.failed
    assert len(noticed.seconds) > 20
    assert set(noticed.probes) == {"200"}
    assert np.quantile(noticed.seconds, 0.9) < 0.5
    assert noticed.attack.total() > 10
    assert "500" not in noticed.attack
    assert "Traceback" not in running.log


def test_no_request_takes_much_more_memory_than_its_body(running: Server) -> None:
    for name, cost in peaks(running).items():
        assert cost["peak"] <= 3 * cost["body"] + 64 * 2**20, name
        assert cost["status"] in (200, 400, 413), name


def test_the_description_holds(running: Server) -> None:
    """Schemathesis asks every route for what its description allows and for what it does not."""
    schema: Any = schemathesis.openapi.from_url(_url(running, "/openapi.json"))
    # what a text holds, and which domains and lengths a model takes, no JSON schema can say
    chosen = [
        CHECKS.get_one(name)
        for name in (
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
            "unsupported_method",
        )
    ]
    seen = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        strategy = operation.as_strategy()
        for generation in (strategy, _negative(operation)):
            seen += _run(generation, chosen)
    assert seen > 100


def _negative(operation: Any) -> Any:
    from schemathesis import GenerationMode

    return operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


def _run(strategy: Any, chosen: list[Any]) -> int:
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable

    count = 0

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    )
    @given(case=strategy)
    def ask(case: Any) -> None:
        nonlocal count
        count += 1
        case.call_and_validate(checks=chosen, timeout=30)

    try:
        ask()
    except Unsatisfiable:  # a route without parameters has no wrong ones
        return 0
    return count


def _in_flight(running: Server) -> int:
    text = requests.get(_url(running, "/metrics"), timeout=10).text
    (line,) = [line for line in text.splitlines() if line.startswith("xvla_in_flight ")]
    return int(float(line.split()[1]))


def test_the_end_is_orderly(checkpoint: Path) -> None:
    """Not ready, what is in flight is answered, exit 0, info.json is gone."""
    with server(checkpoint, [*_FLAGS, "--max_batch=1"], xla_flags=QUICK_COMPILE) as one:
        info = json.loads((one.folder / "info.json").read_text())
        assert info == {
            "host": "127.0.0.1", "port": one.port, "job_id": "none", "node_list": "none"
        }  # fmt: skip
        body = _payload(_observation(0, 2, 0), steps=50)
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(requests.post, _url(one, "/act"), json=body, timeout=60)
                for _ in range(8)
            ]
            end = time.monotonic() + 30
            while _in_flight(one) < 4 and time.monotonic() < end:
                time.sleep(0.01)
            waiting = _in_flight(one)
            assert waiting
            assert one.stop() == 0
            answered = [a.result().status_code for a in asked if a.exception() is None]
        assert answered.count(200) >= waiting
        assert set(answered) <= {200, 503}
        assert not (one.folder / "info.json").exists()


def test_other_machines_need_a_token(checkpoint: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="there is no token"),
        server(checkpoint, [*_FLAGS, "--host=0.0.0.0"]),
    ):
        pass


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="the policy could not be loaded"),
        server(tmp_path, _FLAGS),
    ):
        pass
