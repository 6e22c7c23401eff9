"""What a request may make the server allocate: nothing before it was counted."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xvla_jax.serving.fakes import WIDTH, FakeEngine, request
from xvla_jax.serving import codecs
from xvla_jax.serving.codecs import array_from_list
from xvla_jax.serving.limits import Client, Limits, RequestError
from xvla_jax.serving.request import parse_request
from xvla_jax.serving.service import Sent, Service
from xvla_jax.serving.websocket import array_of_message

RULES = FakeEngine(Limits()).rules
MB = 2**20


def peak(call: Callable[[], Any]) -> tuple[RequestError, int]:
    """The refusal, and bytes at the highest."""
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as refusal:
            call()
        return refusal.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"proprio": ["a" * 1_000_000, *[""] * 500]}, "a list with str in it"),
        ({"prefix": [["a" * 1_000_000, *[""] * 19]] * 4}, "a list with str in it"),
        ({"image0": [[["a" * 1_000_000] * 3] * 8] * 8}, "a list with str in it"),
        ({"proprio": [0.5] * 200_000}, "200000 numbers"),
        ({"proprio": [[0.5] * 1000] * 200}, "lists nested deeper than 1"),
        ({"proprio": [[[[[0.5]]]]] * 900}, "lists nested deeper than 1"),
        ({"prefix": [[[0.5] * WIDTH]] * 4}, "lists nested deeper than 2"),
        ({"prefix": [[0.5] * WIDTH] * 5000}, "5000 numbers"),
        ({"prefix": [[0.5] * WIDTH, [0.5]]}, "lists of unequal lengths"),
        ({"image0": [[[1, 2, 3]], 7]}, "lists of unequal lengths"),
        ({"image0": [7, [[1, 2, 3]]]}, "a list with list in it"),
        ({"image0": [[[True, False, True]]]}, "a list with bool in it"),
        ({"image0": [[[None, 1, 2]]]}, "a list with NoneType in it"),
        ({"image0": [[[{}, 1, 2]]]}, "a list with dict in it"),
        ({"domain_id": ["a" * 1_000_000]}, "a list with str in it"),
        ({"domain_id": [0] * 1000}, "1000 numbers"),
    ],
)
def test_a_list_is_refused_before_an_array_is_made_of_it(
    change: dict[str, Any], reason: str
) -> None:
    body = json.dumps(request(**change)).encode()
    arrays = {"proprio": np.zeros(WIDTH), "image0": np.zeros((2, 2, 3), np.uint8)}
    for fields, array in (
        (codecs.decode_object(body), codecs.decode_array),
        (request() | arrays | change, array_of_message),
    ):
        refusal, most = peak(lambda f=fields, a=array: parse_request(f, RULES, a))
        assert (refusal.status, refusal.field) == (400, next(iter(change)))
        assert refusal.value == reason
        assert most < 3 * len(body) + MB


def test_lists_of_numbers_are_arrays() -> None:
    for value in ([], [1, 2], [[1, 2.5], [3, 4]], [[[1]]], [2**63], [[]]):
        found = array_from_list("x", value, "numbers", axes=3, most=4)
        wanted = np.array(value)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found, wanted)


def test_one_counter_for_a_whole_message() -> None:
    """4000 lists of 4000 empty ones: each list is short, together they were a gigabyte."""
    rows = (b"\xdc\x0f\xa0" + b"\x90" * 4000) * 4000
    message = b"\x81\xa1a\xdc\x0f\xa0" + rows
    refusal, most = peak(lambda: codecs.unpack(message))
    assert (refusal.status, refusal.field) == (413, "message")
    assert refusal.value == "more than 300000 values"
    assert most < MB


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x81\xa1a" + b"\xdc\x10\x00" * 2000, 400),  # lists that promise more than there is
        (b"\x81\xa1a" + b"\xdf\x00\x00\x10\x00" * 2000, 400),
        (b"\x81\xa1a" + b"\x91" * 100_000, 400),
        (b"\x81\xa1a" + b"\x81\xa1b" * 30_000, 400),
        (msgpack.packb({"a": [{"b": 1}] * 4000, "c": [[{}] * 100] * 4000}), 413),
    ],
)
def test_deep_and_wide_messages_cost_little(data: bytes, status: int) -> None:
    refusal, most = peak(lambda: codecs.unpack(data))
    assert refusal.status == status
    assert most < 3 * len(data) + MB


MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=70_000) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary()),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=40,
)  # fmt: skip


def _values(message: Any) -> int:
    if isinstance(message, list):
        return 1 + sum(map(_values, message))
    if isinstance(message, dict):
        return 1 + sum(1 + _values(value) for value in message.values())
    return 1


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(MESSAGES)
def test_values_are_counted_by_their_heads(message: Any) -> None:
    data = msgpack.packb(message) or b""
    assert codecs.count_msgpack_parts(data) == _values(message)
    assert codecs.count_msgpack_parts(data, 3) <= 4


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_every_length_is_read(size: int) -> None:
    for message in (b"x" * size, "x" * size, [None] * size, {str(i): 0 for i in range(size)}):
        data = msgpack.packb([message, 7]) or b""
        wanted = 2 + _values(message)
        assert codecs.count_msgpack_parts(data) == wanted


def test_parts_of_json_are_counted_without_objects() -> None:
    for body in (b"", b"{}", b'{"a": [1, 2, [3]], "b": {}}', b"," * (3 * MB)):
        assert codecs.count_json_parts(body, 4 * MB) == sum(map(body.count, (b",", b"[", b"{")))
    assert 9 < codecs.count_json_parts(b"," * (3 * MB), 9) < MB, "counting stops above the limit"


def test_brackets_that_are_escaped_are_counted_where_they_are_read() -> None:
    text = "[" + "[]," * 200_000 + "[]]"
    escaped = "".join(f"\\u{ord(c):04x}" for c in text)
    fields = codecs.decode_object(('{"proprio": "' + escaped + '"}').encode())
    with pytest.raises(RequestError) as refusal:
        codecs.decode_array("proprio", fields["proprio"])
    assert refusal.value.status == 413


def test_too_little_memory_is_a_413(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()

    async def main() -> None:
        async with Service(lambda: engine, engine.rules.limits).running() as service:
            sent = Sent(lambda _: request(), codecs.decode_array)
            answer = await service.act(sent, client=Client("x"), began=time.monotonic())
            assert len(answer.actions)

            def exhausted(_: Any) -> Any:
                raise MemoryError

            monkeypatch.setattr(engine, "prepare", exhausted)
            with pytest.raises(RequestError) as refusal:
                await service.act(sent, client=Client("x"), began=time.monotonic())
            assert (refusal.value.status, refusal.value.field) == (413, "body")

    asyncio.run(main())


def test_bodies_of_many_parts_wait_for_each_other_and_for_nobody_else() -> None:
    """While one of them is decoded, a robot's request is answered."""
    engine, release = FakeEngine(), threading.Event()

    def slow(most: int) -> dict[str, Any]:
        if most < codecs.MOST_PARTS:
            raise codecs.ManyPartsError("body", most)
        release.wait(10)
        return request()

    async def main() -> None:
        async with Service(lambda: engine, engine.rules.limits).running() as service:

            def act(sent: Sent, address: str) -> Any:
                return service.act(sent, client=Client(address), began=time.monotonic())

            many = Sent(slow, codecs.decode_array)
            few = Sent(lambda _: request(), codecs.decode_array)
            waiting = [asyncio.create_task(act(many, "flood")) for _ in range(6)]
            for _ in range(3):
                await asyncio.wait_for(act(few, "robot"), 5)
            assert not any(task.done() for task in waiting)
            release.set()
            await asyncio.gather(*waiting)

    asyncio.run(main())
