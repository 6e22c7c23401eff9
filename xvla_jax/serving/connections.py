"""Bounds what a connection may cost before a request is complete, for HTTP and websockets.

Two parts: `Admission` decides which connection closes when there are too many; the protocol classes
extend uvicorn's, which bound neither the size and time of a request's head nor silent, flooding or
unread websockets.
"""

from __future__ import annotations

import asyncio
import collections
import enum
import functools
import json
from collections.abc import Callable
from typing import Any, Final, Protocol

from xvla_jax.errors import needs
from xvla_jax.serving.access import OPEN_PATHS, Message, Receive, Send
from xvla_jax.serving.limits import Limits, RequestError

with needs("serve"):
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_BYTES: Final = 64 * 2**10
HEAD_SECONDS: Final = 10.0
_MOST_PIPELINED: Final = 64  # requests of a connection that wait for the one before them
_MOST_UNREAD: Final = 2**18  # bytes that wait for a client to read them, when it sends pings
_MOST_FRAMES: Final = 2**14  # per message
_FRAMES_AT_ONCE: Final = 256  # per read; uvloop reads up to 256 kB
_MOST_PINGS: Final = 100  # pings and pongs in _PING_SECONDS
_PING_SECONDS: Final = 10.0
_PINGS: Final = (0x9, 0xA)  # opcodes of ping and pong
_LENGTH_BYTES: Final = {126: 2, 127: 8}  # extra bytes by the length in a head's second byte
_CLOSE_SECONDS: Final = 10.0  # for a client to read the reason
_GOING_AWAY: Final = 1001  # RFC 6455


def protocols(limits: Limits) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the factories of a server's HTTP and websocket connections."""
    admission = Admission(limits.connections)
    return (
        functools.partial(BoundedConnection, admission),
        functools.partial(BoundedWebsocket, admission, limits.idle_seconds),
    )


class Connection(Protocol):
    """A connection that can be closed to make room."""

    def shed(self) -> None:
        """Closes the connection at once."""
        ...


class Stage(enum.Enum):
    """Progress of a connection; those of an earlier stage are closed first."""

    SILENT = "no request has arrived on it"
    IDLE = "its requests are answered"
    BUSY = "a request is being answered"


class Admission:
    """All connections of a server by stage, in the order in which they entered it.

    Args:
        most: limit of connections. One more closes the oldest silent one, else the oldest idle one;
            where all are busy it stays, for the probes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._stages: dict[Connection, Stage] = {}
        self._members: dict[Stage, collections.OrderedDict[Connection, None]] = {
            stage: collections.OrderedDict() for stage in Stage
        }

    @property
    def crowded(self) -> bool:
        """True where the limit is reached by busy connections alone."""
        return len(self._members[Stage.BUSY]) >= self._most

    def enter(self, connection: Connection) -> None:
        """Adds a connection, if need be in the place of another."""
        if len(self._stages) >= self._most:
            self._shed_one()
        self._stages[connection] = Stage.SILENT
        self._members[Stage.SILENT][connection] = None

    def move(self, connection: Connection, stage: Stage) -> None:
        """Puts a connection behind the others of a stage; ignores one that has left."""
        if connection in self._stages:
            del self._members[self._stages[connection]][connection]
            self._stages[connection] = stage
            self._members[stage][connection] = None

    def leave(self, connection: Connection) -> None:
        """Removes a connection that has ended; ignores one that has left."""
        stage = self._stages.pop(connection, None)
        if stage is not None:
            del self._members[stage][connection]

    def stage(self, connection: Connection) -> Stage | None:
        """Stage of a connection; None for one that has left."""
        return self._stages.get(connection)

    def _shed_one(self) -> None:
        for stage in (Stage.SILENT, Stage.IDLE):
            if self._members[stage]:
                oldest = next(iter(self._members[stage]))
                self.leave(oldest)
                oldest.shed()
                return


class BoundedConnection(HttpToolsProtocol):
    """Closes a connection whose request line and headers are too long or do not end."""

    def __init__(self, admission: Admission, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admission = admission
        self._served = self.app
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] as uvicorn's
        """Starts the clock of the first head."""
        super().connection_made(transport)
        self._admission.enter(self)
        self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock and leaves the admission."""
        self._head_ends()
        self._admission.leave(self)
        super().connection_lost(exc)

    def shed(self) -> None:
        """Closes the connection at once."""
        self.transport.abort()

    def handle_websocket_upgrade(self) -> None:
        """Hands the transport to a websocket, which enters the admission by itself."""
        self._head_ends()
        self._admission.leave(self)
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        """Starts the clock of another request's head."""
        super().on_message_begin()
        self._head_begins()

    def on_headers_complete(self) -> None:
        """Chooses who answers: the application, or `_crowded` where every connection is busy."""
        self._head_ends()
        if len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.abort()
        probe = self.url.partition(b"?")[0].decode("latin-1") in OPEN_PATHS
        stays = self._admission.stage(self) is Stage.BUSY  # behind one that is being answered
        self.app: Any = (
            _crowded if self._admission.crowded and not probe and not stays else self._served
        )
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Notes that a complete request waits for its answer."""
        super().on_message_complete()
        self._admission.move(self, Stage.BUSY)

    def on_response_complete(self) -> None:
        """Notes that the request is answered, unless another has come behind it."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._admission.move(self, Stage.IDLE)

    def data_received(self, data: bytes) -> None:
        """Counts the bytes of a head; a body is counted where it is read."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._head_ends()
                self.send_400_response("The request's head is too long.")

    def _head_begins(self) -> None:
        self._head_ends()
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_ends(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.send_400_response("The request's head did not arrive in time.")


class FrameHeads:
    """Counts the frames of a websocket's stream by their heads (RFC 6455, 5.2)."""

    def __init__(self) -> None:
        self._head = b""  # the bytes so far of a head that is not complete
        self._left = 0  # bytes to come of the frame whose head is complete

    def feed(self, data: bytes, most: int) -> tuple[int, int]:
        """Counts the heads that end in the data, and those among them of pings or pongs.

        Counting stops above ``most``.
        """
        at = frames = pings = 0
        while at < len(data) and frames <= most:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            missing = _head_size(self._head) - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) == _head_size(self._head):
                self._left = _payload(self._head)
                frames += 1
                pings += self._head[0] & 0x0F in _PINGS
                self._head = b""
        return frames, pings


def _head_size(head: bytes) -> int:
    """Bytes of a head that begins so; the second of them says how many follow."""
    if len(head) < 2:
        return 2
    return 2 + _LENGTH_BYTES.get(head[1] & 0x7F, 0) + (4 if head[1] & 0x80 else 0)


def _payload(head: bytes) -> int:
    short = head[1] & 0x7F
    width = _LENGTH_BYTES.get(short, 0)
    return int.from_bytes(head[2 : 2 + width], "big") if width else short


class BoundedWebsocket(WebSocketsSansIOProtocol):
    """Closes a websocket that is silent for long, or whose client sends and does not read."""

    def __init__(
        self, admission: Admission, idle_seconds: float, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._admission = admission
        self._idle_seconds = idle_seconds
        self._idle_timer: asyncio.TimerHandle | None = None
        self._heads = FrameHeads()
        self._pings, self._pings_since = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the clock of silence."""
        super().connection_made(transport)
        self._admission.enter(self)
        self._listen()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock and leaves the admission."""
        self._stop_listening()
        self._admission.leave(self)
        super().connection_lost(exc)

    def shed(self) -> None:
        """Closes the connection at once."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Counts frames before they are parsed: each, however small, is work of the loop."""
        if self.handshake_initiated:  # before it, data is the handshake
            frames, pings = self._heads.feed(data, _FRAMES_AT_ONCE)
            if pings:
                now = self.loop.time()
                if now - self._pings_since > _PING_SECONDS:
                    self._pings, self._pings_since = 0, now
                self._pings += pings
            if frames > _FRAMES_AT_ONCE or self._pings > _MOST_PINGS:
                self.transport.abort()
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """Stops reading from a client that does not read."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Reads again, unless a message is being answered."""
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def handle_ping(self) -> None:
        """Answers a ping, as long as the answers are read."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self.transport.abort()

    def handle_cont(self, event: Any) -> None:
        """Adds a piece to a message; empty pieces count too."""
        super().handle_cont(event)
        if len(self.frames) > _MOST_FRAMES:
            self.transport.abort()

    def send_receive_event_to_app(self) -> None:
        """Hands over a complete message, which will be answered."""
        self._stop_listening()
        self._admission.move(self, Stage.BUSY)
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Sends, and starts the clock of silence behind an answer; the metadata is none."""
        await super().send(message)
        if self._admission.stage(self) is Stage.BUSY:
            self._admission.move(self, Stage.IDLE)
            self._listen()

    def _listen(self) -> None:
        self._stop_listening()
        self._idle_timer = self.loop.call_later(self._idle_seconds, self._too_silent)

    def _stop_listening(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _too_silent(self) -> None:
        if self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _GOING_AWAY})
        if self.handshake_complete:
            self.conn.send_close(_GOING_AWAY, f"no message for {self._idle_seconds:g} s")
            self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()
        self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)


async def _crowded(scope: Message, receive: Receive, send: Send) -> None:
    """Answers 503 in place of the application, where every connection is busy."""
    del scope, receive
    refusal = RequestError(
        503,
        "too many connections are being served",
        field="connections",
        allowed="a later request",
        retry_after=1.0,
    )
    body = json.dumps(refusal.body()).encode()
    headers = [(k.lower().encode(), v.encode()) for k, v in refusal.headers().items()]
    headers += [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
