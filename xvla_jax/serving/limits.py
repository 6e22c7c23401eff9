"""What a request may ask for, and how many may wait."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import reprlib
from typing import Any, Final, NamedTuple, Protocol

from xvla_jax.errors import ConfigError, XVLAError

CLIENT_ID: Final = "x-client-id"  # the header with a client's name
CROWD: Final = "*"  # whom names without a turn of their own count as; no client can be called so
_MOST_NAME: Final = 64  # characters
_MOST_SEEN: Final = 16_384  # names that are remembered, of all addresses


class Client(NamedTuple):
    """Whose turn it is; a name is empty for clients that give none."""

    address: str
    name: str = ""


class Clients:
    """The names that were seen lately, those used last the longest."""

    def __init__(self) -> None:
        self._seen: collections.OrderedDict[Client, None] = collections.OrderedDict()

    def client(self, address: str, name: str) -> Client:
        """The client of one more request.

        Args:
            address: where it comes from.
            name: what it calls itself, or what tells its connection from others; of one too long
                the beginning counts.
        """
        if not name:
            return Client(address)
        found = Client(address, f"={name[:_MOST_NAME]}")
        known = found in self._seen
        self._seen[found] = None
        self._seen.move_to_end(found)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return found if known else Client(address, CROWD)


class Connection(Protocol):
    """What can be let go."""

    def shed(self) -> None:
        """Ends at once."""
        ...


class Stage(enum.Enum):
    """What a connection has done; those of an earlier stage give way first."""

    SILENT = "no request has arrived on it"
    IDLE = "its requests are answered"
    BUSY = "a request is being answered"


_GIVE_WAY: Final = (Stage.SILENT, Stage.IDLE)


class Admission:
    """All connections of a server by stage, those longest in it first.

    Args:
        most: that are kept. One more makes the oldest silent one end, else the oldest idle one;
            where all are busy it stays, for the probes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: dict[Stage, collections.OrderedDict[Connection, None]] = {
            stage: collections.OrderedDict() for stage in Stage
        }

    @property
    def crowded(self) -> bool:
        """Whether every connection that is kept is busy."""
        return len(self._members[Stage.BUSY]) >= self._most

    def enter(self, connection: Connection) -> None:
        """Takes in a connection, if need be in the place of another."""
        if sum(map(len, self._members.values())) >= self._most:
            self._shed_one()
        self._members[Stage.SILENT][connection] = None

    def move(self, connection: Connection, stage: Stage) -> None:
        """Notes what a connection does now; one that has left stays out."""
        for members in self._members.values():
            if connection in members:
                del members[connection]
                self._members[stage][connection] = None
                return

    def leave(self, connection: Connection) -> None:
        """Forgets a connection that has ended, or was forgotten already."""
        for members in self._members.values():
            members.pop(connection, None)

    def stage(self, connection: Connection) -> Stage | None:
        """Where a connection is; None for one that has left."""
        return next((s for s, members in self._members.items() if connection in members), None)

    def _shed_one(self) -> None:
        for stage in _GIVE_WAY:
            if self._members[stage]:
                oldest, _ = self._members[stage].popitem(last=False)
                oldest.shed()
                return


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = 4
_MOST_SHOWN: Final = 80  # characters of a value


class RequestError(XVLAError):
    """What the client is told.

    Attributes:
        status: HTTP status.
        error: one sentence.
        field: what of the request is meant; empty if all of it.
        value: what was found.
        allowed: what would have been taken.
        retry_after: seconds, where trying again makes sense.
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
        """The JSON answer."""
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
    """The 400 of one field."""
    return RequestError(400, f"{field} cannot be used", field=field, value=value, allowed=allowed)


def printable(value: Any, most: int) -> str:
    """A value of a client as so many characters of ASCII, a text as itself."""
    if isinstance(value, (str, bytes)):
        value = value[:most]  # first, for the rest of it may be megabytes
    text = value if isinstance(value, str) else _SHORT.repr(value)
    return text[:most].encode("ascii", "backslashreplace").decode()


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the server; every one has a flag of scripts/serve.py.

    Attributes:
        body_bytes: of a request, and of a websocket message.
        body_seconds: until the last byte of a body is there.
        image_pixels: of one image.
        text_characters: of an instruction.
        steps: denoising steps.
        deadline_ms: longest deadline, and that of a request that names none.
        queue: requests that wait, of all clients.
        batch: observations that run together; a power of two.
        wait_ms: that a request may wait for others.
        connections: open at once; more make the oldest without a request end.
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
