"""What the calls of a policy cost, and how full they were."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol, Sequence

import numpy as np
from numpy.typing import NDArray

_PERCENTILES = (50, 90, 99)


class Policy(Protocol):
    """Door 2: observations to action chunks; `seed[i]` alone decides the noise of observation i."""

    def act(
        self, observations: Sequence[dict[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """Actions float32[B, T, D], postprocessed."""
        ...


@dataclass
class CallLog:
    """Calls in order.

    Attributes:
        batches: observations in each.
        milliseconds: wall time of each.
        first: whether a call was the first with its batch size in its process, which may compile.
    """

    batches: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    first: list[bool] = field(default_factory=list)

    def add(self, batch: int, milliseconds: float, first: bool) -> None:
        """Notes one call."""
        self.batches.append(batch)
        self.milliseconds.append(round(milliseconds, 1))
        self.first.append(first)

    def extend(self, batches: list[int], milliseconds: list[float], first: list[bool]) -> None:
        """Notes the calls of another log."""
        self.batches += batches
        self.milliseconds += milliseconds
        self.first += first

    def summary(self, num_workers: int) -> dict[str, Any]:
        """Plain values; percentiles and fill are None where nothing was called.

        Batch fill is the share of the simulators whose observation was in the batch, in the mean.
        Percentiles leave out the first calls.
        """
        warm = [m for m, first in zip(self.milliseconds, self.first) if not first]
        p50, p90, p99 = np.percentile(warm, _PERCENTILES).tolist() if warm else (None, None, None)
        calls = len(self.batches)
        return {
            "calls": calls,
            "observations": sum(self.batches),
            "batch_fill": sum(self.batches) / (calls * num_workers) if calls else None,
            "latency_ms": {"p50": p50, "p90": p90, "p99": p99},
            "batches": self.batches,
            "milliseconds": self.milliseconds,
            "first": self.first,
        }


class MeteredPolicy:
    """A policy whose calls are noted.

    Args:
        policy: the policy itself.
        on_call: takes the arguments of `CallLog.add`, after each call.
    """

    def __init__(self, policy: Policy, on_call: Callable[[int, float, bool], None]) -> None:
        self._policy = policy
        self._on_call = on_call
        self._seen: set[int] = set()

    def act(
        self, observations: Sequence[dict[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """As the policy's own."""
        began = time.perf_counter()
        chunks = np.asarray(self._policy.act(observations, seed=seed))  # waits for the device
        milliseconds = 1000 * (time.perf_counter() - began)
        batch = len(observations)
        self._on_call(batch, milliseconds, batch not in self._seen)
        self._seen.add(batch)
        return chunks
