"""Reading a body that may be too large, too slow, or of another kind than it says."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any, Final

from xvla_jax.errors import needs
from xvla_jax.serving.access import OPEN_PATHS, Message, Receive, Send
from xvla_jax.serving.limits import Admission, Limits, RequestError, Stage

with needs("serve"):
    from starlette.requests import ClientDisconnect, Request
with needs("serve"):
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD_BYTES: Final = 64 * 2**10
HEAD_SECONDS: Final = 10.0
_MOST_PIPELINED: Final = 64  # requests of a connection that wait for the one before them
_MOST_UNREAD: Final = 2**18  # bytes that wait for a client to read them, when it sends pings
_MOST_FRAMES: Final = 2**14  # that a message may come in
_FRAMES_AT_ONCE: Final = 256  # of what is read at once, by uvloop 256 kB
_MOST_PINGS: Final = 100  # and pongs, in _PING_SECONDS
_PING_SECONDS: Final = 10.0
_PINGS: Final = (0x9, 0xA)  # opcodes of ping and pong
_LENGTH_BYTES: Final = {126: 2, 127: 8}  # behind a head's second byte
_CLOSE_SECONDS: Final = 10.0  # for a client to read why
_GOING_AWAY: Final = 1001  # RFC 6455


def protocols(limits: Limits) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes the connections of a server, by HTTP and of websockets."""
    admission = Admission(limits.connections)
    return (
        functools.partial(BoundedConnection, admission),
        functools.partial(BoundedWebsocket, admission, limits.idle_seconds),
    )


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
        """The clock of the first head begins."""
        super().connection_made(transport)
        self._admission.enter(self)
        self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._head_ends()
        self._admission.leave(self)
        super().connection_lost(exc)

    def shed(self) -> None:
        """As `admission.Connection`."""
        self.transport.abort()

    def handle_websocket_upgrade(self) -> None:
        """The websocket takes the place of this connection."""
        self._head_ends()
        self._admission.leave(self)
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        """Another request of the same connection."""
        super().on_message_begin()
        self._head_begins()

    def on_headers_complete(self) -> None:
        """The body has bounds of its own."""
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
        """The request is there and will be answered."""
        super().on_message_complete()
        self._admission.move(self, Stage.BUSY)

    def on_response_complete(self) -> None:
        """It is answered; another may have come behind it."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._admission.move(self, Stage.IDLE)

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to a head."""
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
        self._head = b""  # so far, of the frame that begins
        self._left = 0  # bytes of the frame whose head is complete

    def feed(self, data: bytes, most: int) -> tuple[int, int]:
        """How many heads end in the data, and how many of these are pings or pongs.

        Counting ends above ``most``.
        """
        at = frames = pings = 0
        while at < len(data) and frames <= most:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            self._head += data[at : at + 1]
            at += 1
            size = _head_size(self._head)
            if len(self._head) == size:
                self._left = _payload(self._head)
                frames += 1
                pings += self._head[0] & 0x0F in _PINGS
                self._head = b""
        return frames, pings


def _head_size(head: bytes) -> int:
    """Bytes of a head that begins so; one more than there are while that is open."""
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
        """The clock of its silence begins."""
        super().connection_made(transport)
        self._admission.enter(self)
        self._listen()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._stop_listening()
        self._admission.leave(self)
        super().connection_lost(exc)

    def shed(self) -> None:
        """As `admission.Connection`."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Looks at the heads of frames first: each frame, however small, is work of the loop."""
        if self.handshake_initiated:  # before it, data is the handshake
            frames, pings = self._heads.feed(data, _FRAMES_AT_ONCE)
            now = self.loop.time()
            if now - self._pings_since > _PING_SECONDS:
                self._pings, self._pings_since = 0, now
            self._pings += pings
            if frames > _FRAMES_AT_ONCE or self._pings > _MOST_PINGS:
                self.transport.abort()
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """A client that does not read is not listened to."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """It has read; unless its message is being answered, it may send."""
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def handle_ping(self) -> None:
        """Answers, as long as the answers are read."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self.transport.abort()

    def handle_cont(self, event: Any) -> None:
        """One more piece of a message; empty ones count too."""
        super().handle_cont(event)
        if len(self.frames) > _MOST_FRAMES:
            self.transport.abort()

    def send_receive_event_to_app(self) -> None:
        """A message is there and will be answered."""
        self._stop_listening()
        self._admission.move(self, Stage.BUSY)
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Behind an answer, silence begins; behind the metadata it goes on."""
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
    """Instead of the application, where every connection is busy."""
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
