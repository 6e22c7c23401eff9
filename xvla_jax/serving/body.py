"""Reading a body that may be too large, too slow, or of another kind than it says."""

from __future__ import annotations

import asyncio
from typing import Final

from xvla_jax.extras import needs
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.refusal import RequestError

with needs("serve"):
    from starlette.requests import ClientDisconnect, Request

_JSON: Final = "application/json"
# A client reads its 413 only after it has sent, so what is too much is read on for a while.
_DRAIN_SECONDS: Final = 2.0
_DRAIN_TIMES: Final = 4  # of the limit


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        RequestError: 415 for what is no plain JSON, 413 above the limit, 408 when it is slow.
        ClientDisconnect: nobody is there any more.
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
            allowed=f"a whole body within {limits.body_seconds:g} s",
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


def _too_large(found: int, limits: Limits) -> RequestError:
    return RequestError(
        413,
        "the body is too large",
        field="body",
        value=found,
        allowed=f"at most {limits.body_bytes} bytes",
    )


async def _drain(request: Request, limits: Limits) -> None:
    """Reads on and forgets, within bounds."""
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
    """The next piece of the body, and whether more will come."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)
