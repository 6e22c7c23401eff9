"""Memory of a train step on the CPU backend: glibc's heap (XLA's order: models/kernels.py).

None of it changes a number, and none of it has an effect on other backends. It is for machines
that train on their CPU cores, such as a laptop with ``make demo``.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any, Final

from jax import monitoring

_COMPILED: Final = "/jax/core/compile/backend_compile_duration"
_LONG_S: Final = 1.0  # shorter compilations leave little

# Parameters of mallopt, by <malloc.h>.
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8


@functools.cache
def keep_between_steps() -> bool:
    """Keeps what a step frees for the next one; call it before JAX starts its threads.

    Has an effect only where JAX may compute on the CPU alone (``JAX_PLATFORMS=cpu``): all threads
    then share one arena, since the arena of another thread has no room for gigabytes.

    Returns:
        False where nothing was set: another platform, or a C library that is not glibc.

    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or os.environ.get("JAX_PLATFORMS") != "cpu":
        return False
    return all(mallopt(*row) for row in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))


@functools.cache
def trim_after_compiling() -> bool:
    """Gives freed memory back to the system after each long compilation from now on.

    Returns:
        False where the C library is not glibc.

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
