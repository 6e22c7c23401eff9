"""Puts load on a running server: latency, throughput, a soak with disconnects, hostile requests."""

from __future__ import annotations

import collections
import contextlib
import functools
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from benchmarks.serving import hostile
from benchmarks.serving.server_process import Server
from benchmarks.timing import Timing, seconds_of
from xvla_jax.policy import Policy
from xvla_jax.serving.codecs import pack, unpack

_TIMEOUT: Final = 60.0  # seconds
_HOSTILE_THREADS: Final = 4
_BLOCK: Final = 20  # calls of one server in turn; the first block warms up
_LEFT_OFF: Final = 0.2  # share of soak requests that hang up before the answer


def observation(side: int, views: int, seed: int = 0) -> dict[str, Any]:
    """Random images ``uint8[side, side, 3]``; the fields are those of `Policy.act`."""
    rng = np.random.default_rng(seed)
    return {
        "images": [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(views)],
        "instruction": "pick up the bowl",
        "proprio": np.zeros(20, np.float32),
        "domain_id": 0,
    }


def http_body(seen: dict[str, Any]) -> bytes:
    """The released request of an observation."""
    images = {f"image{i}": hostile.array_text(v) for i, v in enumerate(seen["images"])}
    fields = {
        "language_instruction": seen["instruction"],
        "proprio": hostile.array_text(seen["proprio"]),
        "domain_id": seen["domain_id"],
        "seed": 0,
    }
    return json.dumps(fields | images).encode()


def open_websocket(server: Server) -> ClientConnection:
    """A connection whose metadata has been read."""
    ws = connect(f"ws://127.0.0.1:{server.port}", compression=None, max_size=None)
    ws.recv()
    return ws


def latency(server: Server, policy: Policy, *, calls: int) -> dict[str, Any]:
    """Seconds of `Policy.act` and of both doors in turns, so that other load meets all of them."""
    seen = observation(224, 2)
    body, message = http_body(seen), pack({**seen, "seed": 0})
    plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)
    with open_websocket(server) as ws:
        ways: dict[str, Callable[[], Any]] = {
            "act": lambda: policy.act([seen]),  # pyright: ignore[reportArgumentType] a plain dict
            "http": lambda: _post(plain, body),
            "websocket": lambda: _ask(ws, message),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for call in range(calls + 3):
            for name, way in ways.items():
                elapsed = seconds_of(way)
                if call >= 3:
                    seconds[name].append(elapsed)
    plain.close()
    record: dict[str, Any] = {name: Timing(tuple(s)).to_dict() for name, s in seconds.items()}
    for door in ("http", "websocket"):
        record[f"{door}_over"] = record[door]["p50"] - record["act"]["p50"]
        record[f"{door}_p99_over_p50"] = record[door]["p99"] / record[door]["p50"]
    return record


def in_turns(servers: Sequence[Server], *, calls: int) -> dict[str, list[float]]:
    """Median seconds of a request by door, one for each server.

    Blocks of calls alternate between the servers, so that other load meets all of them.
    """
    seen = observation(224, 2)
    body, message = http_body(seen), pack({**seen, "seed": 0})
    medians = {}
    with contextlib.ExitStack() as stack:
        doors: dict[str, list[Callable[[], Any]]] = {"http": [], "websocket": []}
        for one in servers:
            plain = http.client.HTTPConnection("127.0.0.1", one.port, timeout=_TIMEOUT)
            stack.enter_context(contextlib.closing(plain))
            ws = stack.enter_context(open_websocket(one))
            doors["http"].append(functools.partial(_post, plain, body))
            doors["websocket"].append(functools.partial(_ask, ws, message))
        for door, ways in doors.items():
            seconds: list[list[float]] = [[] for _ in ways]
            for _ in range(-(-calls // _BLOCK) + 1):
                for way, mine in zip(ways, seconds, strict=True):
                    mine += [seconds_of(way) for _ in range(_BLOCK)]
            medians[door] = [float(np.median(mine[_BLOCK:])) for mine in seconds]
    return medians


def throughput(server: Server, *, clients: int, side: int, seconds: float) -> float:
    """Chunks per second of so many clients, each of which waits for its answer."""
    message = pack({**observation(side, 2), "seed": 0})
    stop = time.monotonic() + seconds

    def one(_: int) -> int:
        count = 0
        with open_websocket(server) as ws:
            while time.monotonic() < stop:
                _ask(ws, message)
                count += 1
        return count

    with ThreadPoolExecutor(clients) as pool:
        start = time.monotonic()
        total = sum(pool.map(one, range(clients)))
        return total / (time.monotonic() - start)


def soak(server: Server, *, seconds: float, clients: int, side: int) -> dict[str, Any]:
    """Runs clients of both doors that hang up at random; counts what became of each request."""
    body = http_body(observation(side, 2))
    message = pack({**observation(side, 2), "seed": 0})
    stop = time.monotonic() + seconds
    outcomes: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def one(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < stop:
            leaves = bool(rng.random() < _LEFT_OFF)
            by_http = bool(rng.random() < 0.5)
            try:
                outcome = _http_turn(server, body, leaves) if by_http else _ws_turn(
                    server, message, leaves
                )  # fmt: skip
            except (OSError, WebSocketException, http.client.HTTPException) as error:
                outcome = f"error {type(error).__name__}"
            with lock:
                outcomes[outcome] += 1

    with ThreadPoolExecutor(clients) as pool:
        done = [pool.submit(one, i) for i in range(clients)]
        time.sleep(min(30.0, seconds / 4))  # until the allocators have their share
        before = server.resident_bytes()
        for future in done:
            future.result()
    errors = sum(n for name, n in outcomes.items() if name not in ("answered", "hung up"))
    after = server.resident_bytes()
    return {"outcomes": dict(outcomes), "errors": errors, "before": before, "after": after}


def fuzz(server: Server, *, requests: int) -> dict[str, Any]:
    """Hostile requests; statuses by kind."""
    before = server.resident_bytes()
    statuses: collections.Counter[str] = collections.Counter()
    wrong: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def one(thread: int) -> None:
        rng = np.random.default_rng(thread)
        for _ in range(requests // _HOSTILE_THREADS):
            kind, request = hostile.draw(rng)
            status = _send(server, request)
            with lock:
                statuses[str(status)] += 1
                if not 400 <= status < 500:
                    wrong[f"{kind}: {status}"] += 1

    with ThreadPoolExecutor(_HOSTILE_THREADS) as pool:
        list(pool.map(one, range(_HOSTILE_THREADS)))
    return {
        "statuses": dict(statuses),
        "wrong": dict(wrong),
        "before": before,
        "after": server.resident_bytes(),
        "alive": server.process.poll() is None,
    }


def _post(connection: http.client.HTTPConnection, body: bytes) -> None:
    connection.request("POST", "/act", body, hostile.JSON)
    reply = connection.getresponse()
    data = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{reply.status}: {data[:300]!r}")


def _ask(ws: ClientConnection, message: bytes) -> None:
    ws.send(message)
    reply = ws.recv(_TIMEOUT)
    if isinstance(reply, str):
        raise RuntimeError(reply[:300])
    unpack(reply)


def _http_turn(server: Server, body: bytes, leaves: bool) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)
    try:
        connection.request("POST", "/act", body, hostile.JSON)
        if leaves:
            return "hung up"
        reply = connection.getresponse()
        reply.read()
        return "answered" if reply.status == 200 else f"status {reply.status}"
    finally:
        connection.close()


def _ws_turn(server: Server, message: bytes, leaves: bool) -> str:
    with open_websocket(server) as ws:
        ws.send(message)
        if leaves:
            ws.socket.shutdown(socket.SHUT_RDWR)
            return "hung up"
        return "answered" if isinstance(ws.recv(_TIMEOUT), bytes) else "refused"


def _send(server: Server, request: hostile.Hostile) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)
    try:
        connection.request(request.method, request.path, request.body, dict(request.headers))
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()
