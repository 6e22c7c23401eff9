"""Memory that the compiler has freed, given back to the system.

XLA's compiler leaves a gigabyte or two of freed memory in the C library's heap, which keeps it: on
a host that computes on its CPU, the step that follows comes on top.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

from jax import monitoring

_COMPILED: Final = "/jax/core/compile/backend_compile_duration"
_LONG_S: Final = 1.0  # shorter compilations leave little


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
