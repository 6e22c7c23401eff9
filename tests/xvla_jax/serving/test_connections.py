"""Connections over real sockets: who stays where there are too many, and who is let go."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from tests.xvla_jax.serving.fakes import LIMITS, FakeEngine, listening, request
from xvla_jax.serving.codecs import pack, unpack
from xvla_jax.serving.connections import Admission, FrameHeads, Stage
from xvla_jax.serving.service import Service

JSON = {"content-type": "application/json"}
OBSERVATION = {
    "image0": np.zeros((2, 2, 3), np.uint8),
    "state": np.zeros(20),
    "prompt": "push",
    "domain_id": 3,
}
FEW = dataclasses.replace(LIMITS, connections=8)


def silent(port: int, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    return [
        stack.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for _ in range(count)
    ]


def status(port: int, path: str) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as one:
        one.request("GET", path)
        return one.getresponse().status


def ask(one: http.client.HTTPConnection) -> int:
    one.request("POST", "/act", json.dumps(request()), JSON)
    reply = one.getresponse()
    reply.read()
    return reply.status


@contextlib.contextmanager
def robot(port: int) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{port}", compression=None, close_timeout=1) as ws:
        ws.recv(5)
        yield ws


def ask_websocket(ws: ClientConnection) -> int:
    ws.send(pack(OBSERVATION))
    reply = ws.recv(5)
    assert isinstance(reply, bytes), reply
    return len(unpack(reply)["actions"])


def is_ended(one: socket.socket) -> bool:
    one.settimeout(5)
    try:
        while one.recv(2**16):
            pass
        return True
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_silent_connections_give_way_to_robots_and_probes() -> None:
    with contextlib.ExitStack() as stack, listening(FEW) as port:
        established = stack.enter_context(
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5))
        )
        assert ask(established) == 200
        ws = stack.enter_context(robot(port))
        assert ask_websocket(ws) == 4
        sockets = silent(port, 26, stack)
        assert [status(port, path) for path in ("/livez", "/readyz", "/info")] == [200] * 3
        assert ask(established) == 200
        assert ask_websocket(ws) == 4
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as new:
            assert ask(new) == 200
        assert is_ended(sockets[0]), "the oldest went first"
        assert not is_ended(sockets[-1])


def test_websockets_without_a_message_give_way_too() -> None:
    with contextlib.ExitStack() as stack, listening(FEW) as port:
        ws = stack.enter_context(robot(port))
        assert ask_websocket(ws) == 4
        for _ in range(20):
            stack.enter_context(robot(port))
        assert ask_websocket(ws) == 4
        assert status(port, "/livez") == 200


def test_where_all_are_busy_probes_are_answered_and_others_told_to_come_again() -> None:
    engine = FakeEngine(FEW)
    service = Service(lambda: engine, FEW)
    with contextlib.ExitStack() as stack, listening(FEW, service) as port:
        stack.callback(engine.hold.set)
        engine.hold.clear()
        busy = [http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(8)]
        for one in busy:
            one.request("POST", "/act", json.dumps(request()), JSON)
        end = time.monotonic() + 5
        while service.in_flight < 8 and time.monotonic() < end:
            time.sleep(0.01)
        assert status(port, "/livez") == status(port, "/readyz") == 200
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as late:
            late.request("POST", "/act", json.dumps(request()), JSON)
            reply = late.getresponse()
            assert (reply.status, reply.getheader("Retry-After")) == (503, "1")
            assert json.loads(reply.read())["detail"]["field"] == "connections"
        engine.hold.set()
        assert [one.getresponse().status for one in busy] == [200] * 8


def test_a_websocket_that_is_silent_for_long_ends_and_one_that_talks_stays() -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(listening(dataclasses.replace(LIMITS, idle_seconds=0.6)))
        talks, quiet = (stack.enter_context(robot(port)) for _ in range(2))
        for _ in range(6):
            assert ask_websocket(talks) == 4
            time.sleep(0.2)
        with pytest.raises(ConnectionClosed) as closed:
            quiet.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert "no message for 0.6 s" in closed.value.rcvd.reason


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
PING = b"\x89\x80" + bytes(4)
EMPTY_PIECE = b"\x00\x80" + bytes(4)


@pytest.mark.parametrize(
    "flood",
    [PING * 20_000, (b"\x89\xfd" + bytes(4 + 125)) * 2000, b"\x02\x80" + bytes(4)
     + EMPTY_PIECE * 20_000, b"\x8a\x80" + bytes(4) + PING * 150],
    ids=["pings", "long pings", "empty pieces", "pongs and pings"],
)  # fmt: skip
def test_a_flood_of_small_frames_ends_its_connection_and_no_other(flood: bytes) -> None:
    with contextlib.ExitStack() as stack, listening(LIMITS) as port:
        ws = stack.enter_context(robot(port))
        (hostile,) = silent(port, 1, stack)  # by hand: a client's own thread would read its end
        hostile.sendall(UPGRADE)
        assert hostile.recv(4096).startswith(b"HTTP/1.1 101")
        with contextlib.suppress(OSError):
            for i in range(0, len(flood), 60_000):
                hostile.sendall(flood[i : i + 60_000])
        assert is_ended(hostile)
        assert ask_websocket(ws) == 4


def test_pings_of_a_robot_are_answered() -> None:
    with contextlib.ExitStack() as stack, listening(LIMITS) as port:
        ws = stack.enter_context(robot(port))
        for _ in range(20):
            assert ws.ping().wait(5)
        assert ask_websocket(ws) == 4


def test_requests_behind_one_another_are_bounded() -> None:
    engine = FakeEngine()
    with (
        contextlib.ExitStack() as stack,
        listening(LIMITS, Service(lambda: engine, LIMITS)) as port,
    ):
        stack.callback(engine.hold.set)
        engine.hold.clear()
        (one,) = silent(port, 1, stack)
        body = json.dumps(request()).encode()
        head = f"POST /act HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"  # noqa: E501
        one.sendall(head.encode() + body + b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n" * 200)
        assert is_ended(one)
        engine.hold.set()
        assert status(port, "/livez") == 200


class _Fake:
    def __init__(self) -> None:
        self.is_shed = False

    def shed(self) -> None:
        self.is_shed = True


def test_the_order_in_which_connections_give_way() -> None:
    admission, members = Admission(4), [_Fake() for _ in range(9)]
    for member in members[:4]:
        admission.enter(member)
    for member in members[:3]:
        admission.move(member, Stage.BUSY)
    admission.move(members[1], Stage.IDLE)
    admission.move(members[0], Stage.IDLE)
    gone = []
    for new in members[4:7]:
        admission.enter(new)
        admission.move(new, Stage.BUSY)
        gone.append([i for i, member in enumerate(members) if member.is_shed])
    assert gone == [[3], [1, 3], [0, 1, 3]], "silent, then idle, the oldest of each"
    assert admission.crowded
    admission.enter(members[7])
    assert not any(member.is_shed for member in members[4:8]), "busy ones never"
    admission.enter(members[8])
    assert members[7].is_shed
    for member in members:
        admission.leave(member)
        assert admission.stage(member) is None
    admission.move(members[0], Stage.IDLE)
    assert admission.stage(members[0]) is None


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([Opcode.BINARY, Opcode.TEXT, Opcode.PING, Opcode.PONG, Opcode.CONT]),
            st.sampled_from([0, 1, 125, 126, 200, 65_535, 65_536, 70_000]),
            st.booleans(),
        ),
        max_size=6,
    ),
    st.sampled_from([1, 2, 7, 100, 10**6]),
)
def test_frames_are_counted_by_their_heads(
    frames: list[tuple[Opcode, int, bool]], step: int
) -> None:
    control = (Opcode.PING, Opcode.PONG)
    frames = [(o, min(n, 125) if o in control else n, m) for o, n, m in frames]
    step = max(step, sum(n for _, n, _ in frames) // 2000)
    data = b"".join(Frame(o, os.urandom(n)).serialize(mask=m) for o, n, m in frames)
    heads, found = FrameHeads(), [0, 0]
    for i in range(0, len(data), step):
        for place, count in enumerate(heads.feed(data[i : i + step], 100)):
            found[place] += count
    assert found == [len(frames), sum(o in control for o, _, _ in frames)]
