"""Clocks and reference speeds of the benchmarks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

_SIDE: Final = 2048  # of the matrices that measure the peak


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls."""

    seconds: tuple[float, ...]

    def percentile(self, q: float) -> float:
        """Returns a percentile by linear interpolation; p99 of few calls is near the largest."""
        return float(np.percentile(self.seconds, q))

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        names = {"p50": 50, "p90": 90, "p99": 99}
        return {
            "calls": len(self.seconds),
            "min": min(self.seconds),
            **{name: self.percentile(q) for name, q in names.items()},
        }


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the wall time of a call, its results awaited."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def matmul_peak(dtype: Any, *, repeat: int = 20) -> float:
    """Returns FLOP/s of the fastest of ``repeat`` square products on the default device."""
    x = jnp.ones((_SIDE, _SIDE), dtype)
    product = jax.jit(jnp.matmul)
    seconds_of(lambda: product(x, x))
    return 2 * _SIDE**3 / min(seconds_of(lambda: product(x, x)) for _ in range(repeat))
