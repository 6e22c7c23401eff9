"""The HTTP door: ``POST /act`` as X-VLA's clients know it, probes, and the websocket's route."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Coroutine
from typing import Any, Final

import numpy as np

from xvla_jax.errors import needs
from xvla_jax.serving import schema, websocket
from xvla_jax.serving.access import Access
from xvla_jax.serving.body import read_body
from xvla_jax.serving.codecs import MARKER, count_json_parts, decode_array, decode_object
from xvla_jax.serving.limits import CLIENT_ID, Client, RequestError
from xvla_jax.serving.metrics import CONTENT_TYPE
from xvla_jax.serving.service import Answer, Sent, Service

with needs("serve"):
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.websockets import WebSocket
with needs("serve"):
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

_INSPECTION = "inspect"


def add_inspect(app: FastAPI, service: Service) -> None:
    """Adds the route to an application."""

    async def inspect(request: Request) -> Response:
        """The model's inputs for the body of an /act request; nothing runs on the device."""
        status = 500
        try:
            with service.serving():
                body = await read_body(request, service.limits)
                sent = Sent(
                    lambda _: count_json_parts(body), lambda: decode_object(body), decode_array
                )
                client = Client(request.client.host if request.client else "")
                seen = await service.inspect(sent, client=client)
            status = 200
        except RequestError as refusal:
            status = refusal.status
            raise
        finally:
            service.metrics.requests.labels(_INSPECTION, str(status)).inc()
        content = await asyncio.to_thread(json.dumps, seen, default=_plain)
        return Response(content, media_type="application/json")

    app.add_api_route(
        "/inspect",
        inspect,
        methods=["POST"],
        response_model=schema.InspectReply,
        responses=schema.errors(400, 401, 403, 408, 413, 415, 500, 503),
        openapi_extra=schema.ACT_BODY,
    )


def _plain(value: Any) -> Any:
    """Arrays as json_numpy writes them."""
    array = np.asarray(value)
    return {
        MARKER: base64.b64encode(array.tobytes()).decode(),
        "dtype": array.dtype.str,
        "shape": list(array.shape),
    }


_GONE: Final = 499  # the client closed the connection; nobody reads this status
_CLOSING: Final = (408, 413)  # the rest of the body may still be on its way
_DOOR: Final = "http"


def create_app(
    service: Service,
    token: str | None,
    *,
    inspect: bool = False,
    hosts: frozenset[str] | None = None,
) -> Access:
    """The whole application.

    Args:
        service: started by whoever runs the application.
        token: what clients must show; None lets everybody in.
        inspect: add the route that shows what the model is given.
        hosts: whom the Host header may name, without a port; None for any.
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
        add_inspect(app, service)

    async def talk(socket: WebSocket) -> None:
        await websocket.talk(socket, service)

    app.add_api_websocket_route("/", talk)
    return Access(app, token, hosts)


def _add_act(app: FastAPI, service: Service) -> None:
    async def act(request: Request) -> Response:
        """Actions for one observation."""
        began = time.monotonic()
        status = 500
        try:
            with service.serving():
                answer = await _answer(request, service, began)
            status = 200
            return _reply(answer)
        except RequestError as refusal:
            status = refusal.status
            raise
        except ClientDisconnect:
            status = _GONE
            raise
        finally:
            service.metrics.requests.labels(_DOOR, str(status)).inc()
            seconds = time.monotonic() - began
            service.metrics.seconds.labels(_DOOR).observe(seconds)

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


async def _answer(request: Request, service: Service, began: float) -> Answer:
    address = request.client.host if request.client else ""
    client = service.clients.client(address, request.headers.get(CLIENT_ID, ""))
    service.check(client)
    body = await read_body(request, service.limits)
    header = request.headers.get("x-deadline-ms")

    def decode() -> dict[str, Any]:
        fields = decode_object(body)
        return fields if header is None else {"deadline_ms": header} | fields

    sent = Sent(lambda _: count_json_parts(body), decode, decode_array)
    work = service.act(sent, client=client, began=began)
    return await _unless_gone(request, work)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Gives up the place in the queue when nobody waits for the answer."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError, RequestError):
            await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reply(answer: Answer) -> Response:
    content = {"action": answer.actions.tolist()} | answer.extras
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


def _add_probes(app: FastAPI, service: Service) -> None:
    async def livez() -> dict[str, str]:
        """The process runs; for a liveness probe."""
        return {"state": service.state}

    async def readyz() -> Response:
        """200 when requests are taken, 503 before and after."""
        status = 200 if service.state == "ready" else 503
        return JSONResponse({"state": service.state}, status)

    async def info() -> Response:
        """What is served: model, action contract, domains, shapes, limits."""
        return JSONResponse(dict(service.info))

    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def healthz() -> Response:
        """As openpi's server answers."""
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
    """The reason goes to the log, by Starlette; the client learns nothing of our insides."""
    return JSONResponse(
        RequestError(500, "internal error; the server's log has the reason").body(), 500
    )
