"""Attacks a running server, and records what a robot beside the attack notices.

Each attack is one thread's loop for some seconds; a row of `ATTACKS` says how many run at once. All
have a process of their own, so that what they cost there is not counted as the server's.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import http.client
import json
import logging
import multiprocessing
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from benchmarks.serving import hostile
from benchmarks.serving.server_process import Server
from xvla_jax.serving.codecs import pack

_TIMEOUT: Final = 30.0  # seconds
_PAUSE: Final = 0.05  # of the robot, behind an answer
_FAILURES: Final = (OSError, WebSocketException, http.client.HTTPException)


class Attack:
    """State of one thread of an attack.

    Args:
        port: of the server, on loopback.
        thread: its number.
    """

    def __init__(self, port: int, thread: int) -> None:
        self.port = port
        self.thread = thread
        self.statuses: collections.Counter[str] = collections.Counter()

    def post(self, body: bytes, headers: Mapping[str, str] = hostile.JSON) -> None:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request("POST", "/act", body, dict(headers))
            reply = connection.getresponse()
            reply.read()
            self.statuses[str(reply.status)] += 1
        finally:
            connection.close()

    def message(self, data: bytes) -> None:
        """One message on a websocket of its own; 400 for the text of a refusal."""
        url = f"ws://127.0.0.1:{self.port}"
        with connect(url, compression=None, max_size=None, close_timeout=1) as ws:
            ws.recv(_TIMEOUT)
            ws.send(data)
            self.statuses["400" if isinstance(ws.recv(_TIMEOUT), str) else "200"] += 1


def lists(attack: Attack) -> None:
    """Lists that an array of texts would be made of, too many, too deep, of unequal lengths."""
    attack.post(_list_bodies()[sum(attack.statuses.values()) % len(_list_bodies())])


@functools.cache
def _list_bodies() -> list[bytes]:
    proprios: Sequence[Any] = (
        ["a" * 1_000_000, *[""] * 500],
        [[0] * 500] * 500,
        [[[[[0.5]]]]] * 20_000,
        [0.5] * 250_000,
        [[1], *[[1, 2]] * 80_000],
    )
    seen = np.zeros((8, 8, 3), np.uint8)
    return [json.dumps(hostile.good(seen, proprio=proprio)).encode() for proprio in proprios]


def nested(attack: Attack) -> None:
    """16 MiB of msgpack: 4000 lists of 4000 empty lists."""
    attack.message(NESTED)


def fresh_ids(attack: Attack) -> None:
    """Good requests of 50 steps, each under a new name."""
    name = f"{attack.thread}.{sum(attack.statuses.values())}"
    fields = hostile.good(np.zeros((8, 8, 3), np.uint8), steps=50)
    attack.post(json.dumps(fields).encode(), {**hostile.JSON, "X-Client-Id": name})


def idle_sockets(attack: Attack) -> None:
    """260 connections on which nothing is ever asked, half of them upgraded to websockets."""
    upgrade = (
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with contextlib.ExitStack() as stack:
        for i in range(260):
            one = socket.create_connection(("127.0.0.1", attack.port), _TIMEOUT)
            stack.enter_context(one)
            if i % 2:
                one.sendall(upgrade.encode())
        attack.statuses["held"] += 260
        time.sleep(1.0)


def unread_pings(attack: Attack) -> None:
    """Pings from a client that never reads the answers."""
    url = f"ws://127.0.0.1:{attack.port}"
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # of the end that is meant
    with connect(url, compression=None, max_size=None, close_timeout=1) as ws:
        ws.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ws.socket.settimeout(1.0)
        ping = b"\x89\xfd" + bytes(4) + bytes(125)
        for _ in range(2000):
            ws.socket.sendall(ping * 100)
    attack.statuses["sent"] += 1


def mixed(attack: Attack) -> None:
    """The kinds of `hostile.draw`."""
    rng = np.random.default_rng([attack.thread, sum(attack.statuses.values())])
    _, request = hostile.draw(rng)
    connection = http.client.HTTPConnection("127.0.0.1", attack.port, timeout=_TIMEOUT)
    try:
        connection.request(request.method, request.path, request.body, dict(request.headers))
        attack.statuses[str(connection.getresponse().status)] += 1
    finally:
        connection.close()


NESTED: Final = b"\x81\xa1a" + b"\xdc\x0f\xa0" + (b"\xdc\x0f\xa0" + b"\x90" * 4000) * 4000
# name -> threads, what each of them does again and again
ATTACKS: Final[Mapping[str, tuple[int, Callable[[Attack], None]]]] = {
    "lists": (2, lists),
    "nested msgpack": (2, nested),
    "fresh ids": (100, fresh_ids),
    "idle sockets": (1, idle_sockets),
    "unread pings": (2, unread_pings),
    "mixed": (2, mixed),
}


@dataclasses.dataclass
class Noticed:
    """Answers that a robot got beside an attack.

    Attributes:
        failed: requests without an answer, by reason.
        seconds: of each answer.
        attack: statuses of the attack's requests.
        probes: statuses of ``/livez`` and ``/readyz``, on new connections.
    """

    failed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)
    attack: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    probes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def to_dict(self) -> dict[str, Any]:
        """For the record; the quantiles in seconds."""
        p50, p99 = np.quantile(self.seconds or [np.inf], [0.5, 0.99])
        return {
            "answered": len(self.seconds),
            "failed": dict(self.failed),
            "p50": float(p50),
            "p99": float(p99),
            "attack": dict(self.attack),
            "probes": dict(self.probes),
        }


def beside(server: Server, name: str, *, seconds: float, observation: Mapping[str, Any]) -> Noticed:
    """An established robot's websocket, and probes, while an attack runs.

    Args:
        server: that is attacked.
        name: of the attack; none if empty.
        seconds: for so long.
        observation: what the robot sends.
    """
    noticed, message = Noticed(), pack(dict(observation))
    url, spawn = f"ws://127.0.0.1:{server.port}", multiprocessing.get_context("spawn")
    with connect(url, compression=None) as robot, ProcessPoolExecutor(1, spawn) as process:
        robot.recv(_TIMEOUT)
        attack = process.submit(attacked, server.port, name, seconds)
        while not attack.done():
            began = time.monotonic()
            try:
                robot.send(message)
                reply = robot.recv(_TIMEOUT)
            except _FAILURES as error:
                noticed.failed[type(error).__name__] += 1
                break
            if isinstance(reply, str):
                noticed.failed[json.loads(reply)["error"]] += 1
                break
            noticed.seconds.append(time.monotonic() - began)
            if len(noticed.seconds) % 5 == 0:
                for path in ("/livez", "/readyz"):
                    noticed.probes[_probe(server, path)] += 1
            time.sleep(_PAUSE)
        noticed.attack += attack.result()
    return noticed


def attacked(port: int, name: str, seconds: float) -> collections.Counter[str]:
    """Runs an attack; the statuses of its requests, or what became of them."""
    threads, act = ATTACKS.get(name, (0, mixed))
    attacks = [Attack(port, i) for i in range(threads)]
    end = time.monotonic() + seconds

    def loop(attack: Attack) -> None:
        while time.monotonic() < end:
            try:
                act(attack)
            except _FAILURES as error:
                attack.statuses[type(error).__name__] += 1

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(loop, attacks))
    time.sleep(max(0.0, end - time.monotonic()))
    return sum((attack.statuses for attack in attacks), collections.Counter())


def _probe(server: Server, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        return str(connection.getresponse().status)
    except _FAILURES as error:
        return type(error).__name__
    finally:
        connection.close()
