"""The C library's heap, where XLA computes on the CPU.

XLA's compiler leaves a gigabyte or two of freed memory in the heap, which keeps it: the step that
follows comes on top. The step itself allocates gigabytes and frees them: given back to the system
each time, every page of them is faulted in and zeroed again, a fifth of a full-size step.
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
