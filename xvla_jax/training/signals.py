"""Stopping a run between two steps, on all its processes at the same step."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Turns SIGINT and SIGTERM into a stop between two steps. Use as a context manager.

    Schedulers repeat SIGTERM: further ones change nothing. A second Ctrl-C stops at once.

    Where several processes are connected, JAX handles SIGTERM: whichever process gets it, all agree
    on a step that none has passed (within a second or two). SIGINT is handed on as SIGTERM. One
    process has nobody to agree with, and JAX was seen to miss the signal there.

    Attributes:
        number: of the signal that this process caught; None if it was none, or JAX's SIGTERM.
    """

    def __init__(self) -> None:
        """Catches nothing before the ``with`` block."""
        self.number: int | None = None
        self._previous: dict[int, Any] = {}
        self._connected = jax.distributed.is_initialized() and jax.process_count() > 1

    def reached(self, step: int) -> bool:
        """Returns True to stop after ``step``; call it on every process, at least once a step."""
        if self._connected:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.number is not None

    def __enter__(self) -> StopSignal:
        """Starts to catch."""
        # SIGTERM stays with JAX where processes are connected: it makes them agree on a step.
        numbers = (signal.SIGINT,) if self._connected else (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.number == number == signal.SIGINT:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        is_first, self.number = self.number is None, number
        if self._connected and is_first:
            os.kill(os.getpid(), signal.SIGTERM)  # to JAX's handler, which informs all processes
