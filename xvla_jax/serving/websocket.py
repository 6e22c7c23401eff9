"""The websocket door, as openpi's client speaks it.

After the handshake the server sends its metadata; then every message is one observation and every
answer one chunk, both msgpack. An error is a text, after which the server closes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from xvla_jax.errors import needs
from xvla_jax.serving.codecs import pack, unpack
from xvla_jax.serving.limits import CLIENT_ID, Client, RequestError, bad_field
from xvla_jax.serving.service import Answer, Sent, Service

with needs("serve"):
    from starlette.responses import JSONResponse
    from starlette.websockets import WebSocket, WebSocketDisconnect

_DOOR: Final = "websocket"
_NUMBERS: Final = itertools.count()  # names of connections that give themselves none
# RFC 6455: 1013 try again later, 1011 our fault, 1008 the client's
_CLOSE_CODES: Final[Mapping[int, int]] = {503: 1013, 500: 1011}


async def talk(socket: WebSocket, service: Service) -> None:
    """Serves one connection until it ends."""
    try:
        metadata = pack(dict(service.info))
    except RequestError as refusal:
        await socket.send_denial_response(
            JSONResponse(refusal.body(), refusal.status, refusal.headers())
        )
        return
    await socket.accept()
    address = socket.client.host if socket.client else ""
    name = socket.headers.get(CLIENT_ID, f"socket {next(_NUMBERS)}")
    service.metrics.sockets.inc()
    try:
        await socket.send_bytes(metadata)
        await _converse(socket, service, address, name)
    except WebSocketDisconnect:
        return
    finally:
        service.metrics.sockets.dec()


async def _converse(socket: WebSocket, service: Service, address: str, name: str) -> None:
    # ws://host:port/?domain_id=3: for robots whose code cannot name their domain in a message
    defaults = dict(socket.query_params)
    previous: float | None = None
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        began = time.monotonic()
        status = 500
        try:
            with service.serving():
                client = service.clients.client(address, name)
                answer = await _answer(message, defaults, service, client, began)
                reply = _packed(answer, previous)
                await socket.send_bytes(reply)
            status = 200
        except RequestError as refusal:
            status = refusal.status
            await socket.send_text(json.dumps(refusal.body()))
            await socket.close(_CLOSE_CODES.get(refusal.status, 1008), refusal.error[:100])
            return
        finally:
            previous = time.monotonic() - began
            service.metrics.requests.labels(_DOOR, str(status)).inc()
            service.metrics.seconds.labels(_DOOR).observe(previous)


async def _answer(
    message: Mapping[str, Any],
    defaults: Mapping[str, str],
    service: Service,
    client: Client,
    began: float,
) -> Answer:
    data = message.get("bytes")
    if data is None:
        raise bad_field("message", "a text", "a binary message in msgpack")
    service.check(client)
    sent = Sent(lambda most: {**defaults, **unpack(data, most)}, array_of_message)
    return await service.act(sent, client=client, began=began)


def array_of_message(field: str, value: Any) -> Any:
    """The array, or the list, that a field's value of a message is.

    Raises:
        RequestError: anything else.
    """
    if isinstance(value, (np.ndarray, list)):
        return value
    raise bad_field(field, value, "an array, or a list of numbers")


def _packed(answer: Answer, previous: float | None) -> bytes:
    timing = dict(answer.extras["server_timing"])
    if previous is not None:
        timing["prev_total_ms"] = 1000 * previous
    return pack({"actions": answer.actions, **answer.extras, "server_timing": timing})
