"""Stopping a run between two steps, on all its processes at the same one."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Final

import jax
from jax import monitoring
from jax.experimental import multihost_utils

_COMPILED: Final = "/jax/core/compile/backend_compile_duration"
_LONG_S: Final = 1.0  # shorter compilations leave little

# Parameters of mallopt, by <malloc.h>.
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8


@functools.cache
def keep_between_steps() -> bool:
    """Keeps what a step frees for the next one; before JAX starts its threads.

    Only where JAX is told to compute on the CPU alone (``JAX_PLATFORMS=cpu``), as all threads then
    share one arena: another thread's has no room for gigabytes. False where that is not so, or the
    C library is not glibc.

    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or os.environ.get("JAX_PLATFORMS") != "cpu":
        return False
    return all(mallopt(*row) for row in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))


@functools.cache
def trim_after_compiling() -> bool:
    """From now on in this process; False where the C library is not glibc.

    Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False

    def on_duration(event: str, duration_secs: float, **kwargs: Any) -> None:
        del kwargs
        if event == _COMPILED and duration_secs > _LONG_S:
            trim(0)

    monitoring.register_event_duration_secs_listener(on_duration)
    return True


class StopSignal:
    """Turns SIGINT and SIGTERM into a stop between two steps. Use as a context manager.

    Schedulers send SIGTERM again and again: the others change nothing. A second Ctrl-C stops at
    once.

    Where processes are connected, JAX has taken SIGTERM over: whichever of them gets it, all agree
    on a step that none has passed (within a second or two). SIGINT is handed on as SIGTERM.

    Attributes:
        number: of the signal that this process caught; None if it was none, or JAX's SIGTERM.
    """

    def __init__(self) -> None:
        """Nothing is caught before the ``with`` block."""
        self.number: int | None = None
        self._previous: dict[int, Any] = {}
        self._connected = jax.distributed.is_initialized()

    def reached(self, step: int) -> bool:
        """Whether to stop behind ``step``; to be asked on every process, once or more a step."""
        if self._connected:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.number is not None

    def __enter__(self) -> StopSignal:
        """Starts to catch."""
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
        first, self.number = self.number is None, number
        if self._connected and first:
            os.kill(os.getpid(), signal.SIGTERM)
