"""Talks to a policy server over HTTP or a websocket, chosen by the scheme of the address.

One object is one conversation and belongs to one thread at a time. A failure on the way raises
`TryAgainError`, a refusal by the server `RequestRefusedError`.
"""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any, Callable, Mapping, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.extras import needed

_DTYPES = ("|b1", "|u1", "<i4", "<i8", "<f2", "<f4", "<f8")
_MOST_REPLY = 2**24  # bytes of one message
_CLOSE_S = 1.0
# HTTP status of a refusal by the code that closes the websocket (RFC 6455).
_STATUS_OF_CLOSE = {1013: 503, 1011: 500}


class RemoteError(RuntimeError):
    """The policy server could not be used."""


class TryAgainError(RemoteError):
    """Nobody answered, or the server is busy; `after_s` is the wait that it asks for, or 0."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class RequestRefusedError(RemoteError):
    """The server refused a request; asking again would not help.

    Attributes:
        status: HTTP status.
        field: field of the request, or empty.
    """

    def __init__(self, status: int, error: str, detail: Mapping[str, Any]) -> None:
        self.status = status
        self.field = str(detail.get("field", ""))
        super().__init__(
            f"the server refused ({status}): {error}; field {self.field or '-'}, "
            f"value {detail.get('value')!r}, allowed: {detail.get('allowed', '')}"
        )


class Transport(Protocol):
    """A conversation with a server."""

    def info(self) -> dict[str, Any]:
        """Content of ``/info``; over a websocket, as of the present connection."""
        ...

    def act(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Sends one request; the reply has its actions under ``actions``."""
        ...

    def close(self) -> None:
        """Ends the conversation; the next call begins another."""
        ...


class HttpTransport:
    """X-VLA's door: ``GET /info`` and ``POST /act``."""

    def __init__(self, url: str, *, token: str | None, timeout_s: float) -> None:
        self._requests = needed("requests")
        self._url = url.rstrip("/")
        self._timeout = timeout_s
        self._session = self._requests.Session()
        # Set as `auth`, because a .netrc file would overwrite a plain header.
        self._session.auth = _authorized(token)

    def info(self) -> dict[str, Any]:
        """Returns the content of ``/info``."""
        return self._exchange("GET", "/info", None)

    def act(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Sends one request."""
        reply = self._exchange("POST", "/act", json_fields(fields))
        return {**reply, "actions": reply.get("action")}

    def inspect(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the model's inputs for a request, if the server runs with ``--inspect``."""
        return arrays_of(self._exchange("POST", "/inspect", json_fields(fields)))

    def close(self) -> None:
        """Ends the conversation."""
        self._session.close()

    def _exchange(self, method: str, path: str, body: str | None) -> dict[str, Any]:
        try:
            reply = self._session.request(
                method,
                self._url + path,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=self._timeout,
                allow_redirects=False,
            )
            content = reply.json()
        except self._requests.RequestException as error:
            raise TryAgainError(f"{self._url}{path}: {error}") from error
        if reply.status_code == 200 and isinstance(content, dict):
            return content
        raise _refusal(reply.status_code, content, reply.headers.get("Retry-After"))


class WebsocketTransport:
    """openpi's door: the server speaks first, then each message has one answer.

    A connection that failed or ran out of time is dropped, so that a late answer is never taken for
    that of the next request.
    """

    def __init__(self, url: str, *, token: str | None, timeout_s: float) -> None:
        self._connect = needed("websockets.sync.client").connect
        self._failures = needed("websockets.exceptions")
        self._url = url
        self._token = token
        self._timeout = timeout_s
        self._held = contextlib.ExitStack()
        self._socket: Any = None
        self._info: dict[str, Any] = {}

    def info(self) -> dict[str, Any]:
        """Returns the content of ``/info``."""
        return self._guarded(lambda: self._info)

    def act(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Sends one request."""
        return self._guarded(lambda: self._ask(pack(fields)))

    def close(self) -> None:
        """Ends the conversation."""
        self._socket = None
        with contextlib.suppress(OSError, self._failures.WebSocketException):
            self._held.close()

    def _guarded(self, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        complete = False
        try:
            if self._socket is None:
                self._open()
            reply = act()
            complete = True
            return reply
        except self._failures.InvalidStatus as error:
            response = error.response
            text = bytes(response.body or b"{}").decode("utf-8", "replace")
            after = response.headers.get("Retry-After")
            raise _refusal(response.status_code, _json(text), after) from error
        except (OSError, TimeoutError, ValueError, self._failures.WebSocketException) as error:
            raise TryAgainError(f"{self._url}: {type(error).__name__}: {error}") from error
        finally:
            if not complete:
                self.close()

    def _open(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        opened = self._connect(
            self._url,
            additional_headers=headers,
            open_timeout=self._timeout,
            close_timeout=_CLOSE_S,
            compression=None,
            max_size=_MOST_REPLY,
        )
        self._socket = self._held.enter_context(opened)
        self._info = self._receive()

    def _ask(self, message: bytes) -> dict[str, Any]:
        self._socket.send(message)
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        data = self._socket.recv(timeout=self._timeout)
        if isinstance(data, bytes):
            return unpack(data)
        status = 400
        try:
            self._socket.recv(timeout=self._timeout)
        except self._failures.ConnectionClosed as closed:
            status = _STATUS_OF_CLOSE.get(closed.rcvd.code if closed.rcvd else 0, 400)
        raise _refusal(status, _json(data), None)


def _authorized(token: str | None) -> Callable[[Any], Any]:
    def sign(request: Any) -> Any:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _refusal(status: int, content: Any, after: str | None) -> RemoteError:
    body = content if isinstance(content, dict) else {}
    error = str(body.get("error", "no reason was given"))
    if status == 503:
        seconds = float(after) if after is not None and after.strip().isdigit() else 0.0
        return TryAgainError(f"the server is busy (503): {error}", seconds)
    detail = body.get("detail")
    return RequestRefusedError(status, error, detail if isinstance(detail, dict) else {})


TRANSPORTS: Mapping[str, Callable[..., Transport]] = {
    "http": HttpTransport,
    "https": HttpTransport,
    "ws": WebsocketTransport,
    "wss": WebsocketTransport,
}


# --- the forms of a request and a reply


def json_fields(fields: Mapping[str, Any]) -> str:
    """Returns the JSON body of a request; each array is a JSON text, as X-VLA's clients send it."""
    plain = {k: array_text(v) if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    return json.dumps(plain)


def array_text(array: NDArray[Any]) -> str:
    """Returns an array as json_numpy writes it: base64 of its C-order bytes, dtype and shape."""
    return json.dumps(
        {
            "__numpy__": base64.b64encode(array.tobytes()).decode("ascii"),
            "dtype": array.dtype.str,
            "shape": list(array.shape),
        }
    )


def arrays_of(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON reply with its marked values as arrays."""
    return {name: _from_json(value) for name, value in reply.items()}


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict) or "__numpy__" not in value:
        return value
    data = base64.b64decode(value["__numpy__"])
    return np.frombuffer(data, _known(value["dtype"])).reshape(value["shape"])


def _known(dtype: Any) -> str:
    if dtype not in _DTYPES:
        raise ValueError(f"the server sent an array of {dtype!r}; one of {', '.join(_DTYPES)}")
    return dtype


def pack(fields: Mapping[str, Any]) -> bytes:
    """Returns the msgpack form of a request."""
    return needed("msgpack").packb(dict(fields), default=_array_map)


def unpack(data: bytes) -> dict[str, Any]:
    """Returns a server's message.

    Raises:
        ValueError: it is no msgpack map, or an array in it is of another kind than numbers.
    """
    message = needed("msgpack").unpackb(data, object_hook=_array_of, max_bin_len=len(data))
    if not isinstance(message, dict):
        raise ValueError(f"the server's message is a {type(message).__name__}; a map is expected")
    return message


def _array_map(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.str in _DTYPES:
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _array_of(parts: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in parts:
        return parts
    return np.frombuffer(parts[b"data"], _known(parts[b"dtype"])).reshape(parts[b"shape"])
