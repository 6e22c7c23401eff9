"""``POST /inspect``: what the model would be given for a request; for `scripts.compare_client`.

It is there only where the server was told so. It says nothing about a request that its sender does
not know, but it tells how the checkpoint preprocesses.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np

from xvla_jax.extras import needs
from xvla_jax.serving import schema
from xvla_jax.serving.body import read_body
from xvla_jax.serving.clients import Client
from xvla_jax.serving.json_codec import MARKER, count_parts, decode_array, decode_object
from xvla_jax.serving.refusal import RequestError
from xvla_jax.serving.service import Sent, Service

with needs("serve"):
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

_DOOR = "inspect"


def add_inspect(app: FastAPI, service: Service) -> None:
    """Adds the route to an application."""

    async def inspect(request: Request) -> Response:
        """The model's inputs for the body of an /act request; nothing runs on the device."""
        status = 500
        try:
            with service.serving():
                body = await read_body(request, service.limits)
                sent = Sent(lambda _: count_parts(body), lambda: decode_object(body), decode_array)
                client = Client(request.client.host if request.client else "")
                seen = await service.inspect(sent, client=client)
            status = 200
        except RequestError as refusal:
            status = refusal.status
            raise
        finally:
            service.metrics.requests.labels(_DOOR, str(status)).inc()
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
