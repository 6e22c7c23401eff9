"""Serves HTTP: ``POST /act`` as X-VLA's clients send it, probes, and the websocket's route.

`create_app` builds the application. Below it stand the routes, in the order of a request: reading a
body that may be too large, too slow or of another kind than it says; the answer; the refusals.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from xvla_jax.errors import needs
from xvla_jax.serving import schema, websocket
from xvla_jax.serving.access import Access
from xvla_jax.serving.codecs import MARKER, decode_array, decode_object
from xvla_jax.serving.limits import CLIENT_ID, Client, Limits, RequestError
from xvla_jax.serving.metrics import CONTENT_TYPE
from xvla_jax.serving.service import Answer, Sent, Service

with needs("serve"):
    import pydantic_core
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.websockets import WebSocket

_JSON: Final = "application/json"
_GONE: Final = 499  # the client closed the connection; nobody reads this status
_CLOSING: Final = (408, 413)  # the rest of the body may still be on its way
# A client reads its 413 only after it has sent, so the rest is read and dropped for a while.
_DRAIN_SECONDS: Final = 2.0
_DRAIN_TIMES: Final = 4  # of the limit


def create_app(
    service: Service,
    token: str | None,
    *,
    inspect: bool = False,
    hosts: frozenset[str] | None = None,
) -> Access:
    """Builds the application.

    Args:
        service: started by the caller.
        token: secret that clients must send; None lets everybody in.
        inspect: add the route that returns the model's inputs.
        hosts: names that the Host header may have, without a port; None for any.
    """
    app = FastAPI(
        title="X-VLA policy server", docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _broken)
    _add_act(app, service)
    _add_probes(app, service)
    if inspect:
        _add_inspect(app, service)

    async def talk(socket: WebSocket) -> None:
        await websocket.talk(socket, service)

    app.add_api_websocket_route("/", talk)
    return Access(app, token, hosts)


# --- routes


def _add_act(app: FastAPI, service: Service) -> None:
    async def act(request: Request) -> Response:
        """Actions for one observation."""
        began = time.monotonic()
        try:
            with _counted(service, "http"):
                return _reply(await _answer(request, service, began))
        finally:
            service.metrics.seconds.labels("http").observe(time.monotonic() - began)

    for path in ("/act", "/infer"):
        app.add_api_route(
            path,
            act,
            methods=["POST"],
            response_model=schema.ActReply,
            responses=schema.errors(400, 401, 403, 408, 413, 415, 500, 503),
            openapi_extra=schema.ACT_BODY,
            operation_id=path[1:],
        )


def _add_inspect(app: FastAPI, service: Service) -> None:
    async def inspect(request: Request) -> Response:
        """The model's inputs for the body of an /act request; nothing runs on the device."""
        with _counted(service, "inspect"):
            body = await _read_body(request, service.limits)
            sent = Sent(lambda most: decode_object(body, most), decode_array)
            inputs = await service.inspect(sent, client=Client(_address(request)))
        content = await asyncio.to_thread(json.dumps, inputs, default=_json_numpy)
        return Response(content, media_type=_JSON)

    app.add_api_route(
        "/inspect",
        inspect,
        methods=["POST"],
        response_model=schema.InspectReply,
        responses=schema.errors(400, 401, 403, 408, 413, 415, 500, 503),
        openapi_extra=schema.ACT_BODY,
    )


def _add_probes(app: FastAPI, service: Service) -> None:
    async def livez() -> dict[str, str]:
        """The process runs; for a liveness probe."""
        return {"state": service.state}

    async def readyz() -> Response:
        """200 when requests are taken, 503 before and after."""
        status = 200 if service.state == "ready" else 503
        return JSONResponse({"state": service.state}, status)

    async def info() -> Response:
        """Model, action contract, domains, shapes and limits."""
        return JSONResponse(dict(service.info))

    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def healthz() -> Response:
        """The probe of openpi's server."""
        return PlainTextResponse("OK\n")

    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": schema.StateReply}}
    plain: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    inside, refusing = schema.errors(401, 403), schema.errors(401, 403, 503)
    app.get("/livez", response_model=schema.StateReply)(livez)
    app.get("/readyz", response_model=schema.StateReply, responses=not_ready)(readyz)
    app.get("/info", response_model=schema.InfoReply, responses=refusing)(info)
    app.get("/metrics", response_class=PlainTextResponse, responses=plain | inside)(metrics)
    app.get("/healthz", response_class=PlainTextResponse, responses=plain)(healthz)


@contextmanager
def _counted(service: Service, door: str) -> Iterator[None]:
    """Counts a request as in flight, and its status at the end."""
    status = 500
    try:
        with service.serving():
            yield
        status = 200
    except RequestError as refusal:
        status = refusal.status
        raise
    except ClientDisconnect:
        status = _GONE
        raise
    finally:
        service.metrics.requests.labels(door, str(status)).inc()


# --- the body


async def _read_body(request: Request, limits: Limits) -> bytes:
    """Reads a body up to the limits of size and time.

    Raises:
        RequestError: 415 for anything but plain JSON, 413 above the limit, 408 when it is slow.
        ClientDisconnect: the client is gone.
    """
    _check_kind(request)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.body_bytes:
        await _drain(request, limits)
        raise _too_large(int(announced), limits)
    chunks: list[bytes] = []
    read, more = 0, True
    try:
        async with asyncio.timeout(limits.body_seconds):
            while more and read <= limits.body_bytes:
                chunk, more = await _chunk(request)
                chunks.append(chunk)
                read += len(chunk)
    except TimeoutError as error:
        raise RequestError(
            408,
            "the body did not arrive in time",
            field="body",
            value=read,
            allowed=f"a complete body within {limits.body_seconds:g} s",
        ) from error
    if read > limits.body_bytes:
        if more:
            await _drain(request, limits)
        raise _too_large(read, limits)
    return b"".join(chunks)


def _check_kind(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:
        raise RequestError(
            415, "the body's type is another", field="Content-Type", value=kind, allowed=_JSON
        )
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise RequestError(
            415,
            "the body is compressed",
            field="Content-Encoding",
            value=coding,
            allowed="identity",
        )


def _too_large(size: int, limits: Limits) -> RequestError:
    return RequestError(
        413,
        "the body is too large",
        field="body",
        value=size,
        allowed=f"at most {limits.body_bytes} bytes",
    )


async def _drain(request: Request, limits: Limits) -> None:
    """Reads and drops the rest of a body, up to a limit of time and size."""
    left = _DRAIN_TIMES * limits.body_bytes
    more = True
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while more and left > 0:
                chunk, more = await _chunk(request)
                left -= len(chunk)
    except TimeoutError:
        return


async def _chunk(request: Request) -> tuple[bytes, bool]:
    """Returns the next piece of the body, and True if more will come."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


# --- the answer


async def _answer(request: Request, service: Service, began: float) -> Answer:
    client = service.clients.client(_address(request), request.headers.get(CLIENT_ID, ""))
    service.check(client)
    body = await _read_body(request, service.limits)
    deadline = request.headers.get("x-deadline-ms")
    defaults = {} if deadline is None else {"deadline_ms": deadline}

    def fields(most: int) -> dict[str, Any]:
        return defaults | decode_object(body, most)

    work = asyncio.ensure_future(
        service.act(Sent(fields, decode_array), client=client, began=began)
    )
    gone = asyncio.ensure_future(_disconnected(request))
    # Nobody would read the answer of a client that is gone: its place in the queue is given up.
    gone.add_done_callback(lambda _: work.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        work.cancel()
        if gone.done():
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reply(answer: Answer) -> Response:
    # A tenth of the time of json.dumps for 600 numbers. It would write null for a number that is
    # not finite; the batcher lets none through.
    content = pydantic_core.to_json({"action": answer.actions.tolist()} | answer.extras)
    return Response(content, media_type=_JSON)


def _json_numpy(value: Any) -> Any:
    """Returns an array as json_numpy writes it."""
    array = np.asarray(value)
    return {
        MARKER: base64.b64encode(array.tobytes()).decode(),
        "dtype": array.dtype.str,
        "shape": list(array.shape),
    }


# --- refusals


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestError):
        raise error
    headers = error.headers()
    if error.status in _CLOSING:
        headers["Connection"] = "close"
    return JSONResponse(error.body(), error.status, headers)


async def _no_such_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    refusal = RequestError(
        error.status_code,
        "no such route",
        field=f"{request.method} {request.url.path}"[:80],
        allowed="POST /act, POST /infer, GET /livez, /readyz, /info, /metrics; websocket at /",
    )
    return JSONResponse(refusal.body(), refusal.status, error.headers)


async def _gone(*_: Any) -> Response:
    return Response(status_code=_GONE)


async def _broken(*_: Any) -> Response:
    """Returns a 500 without a reason; Starlette writes the reason to the log."""
    return JSONResponse(
        RequestError(500, "internal error; the server's log has the reason").body(), 500
    )
