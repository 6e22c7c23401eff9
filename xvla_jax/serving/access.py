"""Admits requests by token, Host and Origin, in front of every route."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from xvla_jax.serving.limits import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz"})  # probes carry no token
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_SCHEMES: Final = (b"bearer ", b"api-key ")  # the second is openpi's


class Access:
    """Answers refused requests itself, and hands the others to the application.

    Args:
        app: the application.
        token: secret that clients must send; None lets everybody in.
        hosts: names that the Host header may have, without a port; None for any.
    """

    def __init__(self, app: App, token: str | None, hosts: frozenset[str] | None = None) -> None:
        self._app = app
        self._hosts = hosts
        self._token = token.encode() if token else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one ASGI scope."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send, refusal)

    def _refusal(self, scope: Message) -> RequestError | None:
        headers = [(name, value) for name, value in scope["headers"]]
        if any(name == b"origin" for name, _ in headers):
            # A page in somebody's browser could reach a robot through the user's own loopback.
            return RequestError(
                403, "browsers are not served", field="Origin", allowed="no such header"
            )
        foreign = self._hosts is not None and [
            value.decode("latin-1")
            for name, value in headers
            if name == b"host" and _name_of(value.decode("latin-1")) not in self._hosts
        ]
        if foreign:
            return RequestError(
                403,
                "the server has another name",
                field="Host",
                value=foreign[0],
                allowed=f"{', '.join(sorted(self._hosts or ()))}, or another of --allowed_hosts",
            )
        if self._token is None or scope.get("path") in OPEN_PATHS:
            return None
        given = [value for name, value in headers if name == b"authorization"]
        allowed = "Authorization: Bearer TOKEN"
        if not given:
            return RequestError(401, "a token is needed", field="Authorization", allowed=allowed)
        known = next((s for s in _SCHEMES if given[0].lower().startswith(s)), None)
        token = given[0][len(known) :].strip() if known and len(given) == 1 else b""
        if not hmac.compare_digest(token, self._token):
            return RequestError(403, "the token is wrong", field="Authorization", allowed=allowed)
        return None


def _name_of(host: str) -> str:
    """Returns the name or address of a Host header, without port and brackets."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or not port.isdigit():
        name = host.strip().lower()
    return name.removeprefix("[").removesuffix("]").removesuffix(".")


async def _refuse(scope: Message, receive: Receive, send: Send, refusal: RequestError) -> None:
    prefix = ""
    if scope["type"] == "websocket":
        await receive()  # the handshake, which is answered by plain HTTP
        prefix = "websocket."
    body = json.dumps(refusal.body()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send(
        {"type": f"{prefix}http.response.start", "status": refusal.status, "headers": headers}
    )
    await send({"type": f"{prefix}http.response.body", "body": body})
