"""Limits of requests, the refusal that names them, and clients as the limits know them."""

from __future__ import annotations

import collections
import dataclasses
import math
import reprlib
from typing import Any, Final, NamedTuple

from xvla_jax.errors import ConfigError, XVLAError

CLIENT_ID: Final = "x-client-id"  # the header with a client's name
CROWD: Final = "*"  # shared by all names without a turn of their own; no client can have it
_MOST_NAME: Final = 64  # characters
_MOST_SEEN: Final = 16_384  # remembered names, of all addresses
_MOST_SHOWN: Final = 80  # characters of a value
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server; each has a flag of scripts/serve.py.

    Attributes:
        body_bytes: of a request, and of a websocket message.
        body_seconds: until the last byte of a body has arrived.
        image_pixels: of one image.
        text_characters: of an instruction.
        steps: denoising steps.
        deadline_ms: longest deadline, and that of a request that names none.
        queue: requests that wait, of all clients.
        batch: observations that run together; a power of two.
        wait_ms: that a request may wait for others.
        connections: open at once; one more closes the oldest without a request.
        idle_seconds: that a websocket may be silent.
    """

    body_bytes: int = 16 * 2**20
    body_seconds: float = 10.0
    image_pixels: int = 2**22
    text_characters: int = 1000
    steps: int = 50
    deadline_ms: int = 30_000
    queue: int = 64
    batch: int = 8
    wait_ms: float = 5.0
    connections: int = 256
    idle_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name != "wait_ms"):
                raise ConfigError(f"limit {field.name} is {value}; it must be above 0")
        if self.batch & (self.batch - 1):
            raise ConfigError(f"limit batch is {self.batch}; a power of two is expected")


class RequestError(XVLAError):
    """A refusal with its HTTP status.

    Attributes:
        status: HTTP status.
        error: one sentence.
        field: the part of the request that is meant; empty for all of it.
        value: the value that was sent.
        allowed: the accepted values.
        retry_after: seconds, where a later attempt makes sense.
    """

    def __init__(
        self,
        status: int,
        error: str,
        *,
        field: str = "",
        value: Any = None,
        allowed: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.field = field
        self.value = value
        self.allowed = allowed
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """JSON of the answer."""
        plain = self.value is None or (
            isinstance(self.value, int) and abs(self.value) < 2**53
        )  # a float could be no JSON number, a text of any length
        return {
            "error": self.error,
            "detail": {
                "field": self.field,
                "value": self.value if plain else printable(self.value, _MOST_SHOWN),
                "allowed": self.allowed,
            },
        }

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


def bad_field(field: str, value: Any, allowed: str) -> RequestError:
    """Returns the 400 for one field."""
    return RequestError(400, f"{field} cannot be used", field=field, value=value, allowed=allowed)


def printable(value: Any, most: int) -> str:
    """Returns a client's value as ASCII of at most so many characters; a text as itself."""
    if isinstance(value, (str, bytes)):
        value = value[:most]  # first, for the rest of it may be megabytes
    text = value if isinstance(value, str) else _SHORT.repr(value)
    return text[:most].encode("ascii", "backslashreplace").decode()


class Client(NamedTuple):
    """Owner of a turn; the name is empty for clients that give none."""

    address: str
    name: str = ""


class Clients:
    """Names that were seen lately; the least recently used is forgotten first."""

    def __init__(self) -> None:
        self._seen: collections.OrderedDict[Client, None] = collections.OrderedDict()

    def client(self, address: str, name: str) -> Client:
        """Returns the client of one more request.

        Args:
            address: source of the request.
            name: the client's own name, or one for its connection; only the beginning of a long one
                counts.
        """
        if not name:
            return Client(address)
        client = Client(address, f"={name[:_MOST_NAME]}")
        known = client in self._seen
        self._seen[client] = None
        self._seen.move_to_end(client)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return client if known else Client(address, CROWD)
