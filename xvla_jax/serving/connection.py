"""uvicorn's HTTP connection with what it leaves unbounded: size and time of a request's head."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from xvla_jax.extras import needs

with needs("serve"):
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 64 * 2**10
HEAD_SECONDS: Final = 10.0


class BoundedConnection(HttpToolsProtocol):
    """Closes a connection whose request line and headers are too long or do not end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] as uvicorn's
        """The clock of the first head begins."""
        super().connection_made(transport)
        self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._head_ends()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Another request of the same connection."""
        super().on_message_begin()
        self._head_begins()

    def on_headers_complete(self) -> None:
        """The body has bounds of its own."""
        self._head_ends()
        super().on_headers_complete()

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
