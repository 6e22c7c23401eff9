"""The largest batch that fits, and the nearest config that does, in few compilations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Final

from xvla_jax.models.remat import REMAT
from xvla_jax.planning.programs import DoesNotFitError, Run

# Peak bytes of a run on one chip. Raises DoesNotFitError, which is expensive too: a compilation.
Measure = Callable[[Run], int]

_MARGIN: Final = 0.98  # of the limit, for what a straight line does not see
_TRIES: Final = 3


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """What `largest_batch` found.

    Attributes:
        batch_size: fits, as a compilation has shown.
        peak: its bytes on one chip.
        per_sample: bytes of activations for each sample on a chip.
        compilations: how many it took.
    """

    batch_size: int
    peak: int
    per_sample: float
    compilations: int


def largest_batch(
    run: Run, peak: int, measure: Measure, *, devices: int, limit: float
) -> LargestBatch:
    """Follows the line through two batches to the limit, and compiles where it meets it.

    Args:
        run: fits.
        peak: its bytes.
        measure: compiles a run.
        devices: the batch is a multiple of them.
        limit: bytes of a chip.
    """
    counted = 0
    known = {run.batch_size: peak}

    def fits(batch_size: int) -> bool:
        nonlocal counted
        counted += 1
        try:
            known[batch_size] = measure(dataclasses.replace(run, batch_size=batch_size))
        except DoesNotFitError:
            return False
        return known[batch_size] <= limit

    step = devices
    second = max(run.batch_size // 2 // step, 1) * step
    if second == run.batch_size:
        second = 2 * run.batch_size
    ceiling = math.inf if fits(second) else second
    if ceiling == math.inf:
        for _ in range(_TRIES):
            low, high = min(known), max(known)
            slope = max((known[high] - known[low]) / (high - low), 1.0)
            room = (_MARGIN * limit - known[high]) / slope
            target = high + int(room // step) * step
            target = min(target, ceiling - step)
            if target <= high:
                break
            if not fits(int(target)):
                known.pop(int(target), None)
                ceiling = high + max(int((target - high) * 0.8 // step), 0) * step + step
    low, high = min(known), max(known)
    slope = (known[high] - known[low]) / max(high - low, 1) * devices
    return LargestBatch(high, known[high], slope, counted)


def neighbours(run: Run, *, devices: int) -> Iterator[tuple[str, Run]]:
    """Runs that take less memory, from what costs least to what costs most.

    Yields:
        What to change on the command line, and the run. The changes add up.
    """
    names = list(REMAT)
    for name in names[names.index(run.remat) + 1 :]:
        run = dataclasses.replace(run, remat=name)
        yield _changes(run), run
    fsdp = devices // run.data if run.fsdp == -1 else run.fsdp
    while fsdp * 2 <= devices and devices % (fsdp * 2) == 0:
        fsdp *= 2
        run = dataclasses.replace(run, data=-1, fsdp=fsdp)
        yield _changes(run), run
    while run.batch_size % (2 * devices) == 0:
        run = dataclasses.replace(run, batch_size=run.batch_size // 2)
        yield _changes(run), run


def _changes(run: Run) -> str:
    return (
        f"--config.remat={run.remat} --config.mesh.data={run.data} "
        f"--config.mesh.fsdp={run.fsdp} --config.batch_size={run.batch_size}"
    )


def nearest_fit(
    run: Run, measure: Measure, *, devices: int, held: Callable[[Run], int], limit: float
) -> tuple[str, Run, int] | None:
    """The first of `neighbours` that fits: what to change, the run, its peak bytes.

    Args:
        run: does not fit.
        measure: compiles a run.
        devices: of the mesh.
        held: bytes of a run's train state on one chip; a run whose state alone does not fit is
            not compiled.
        limit: bytes of a chip.
    """
    for change, candidate in neighbours(run, devices=devices):
        if held(candidate) > limit:
            continue
        try:
            peak = measure(candidate)
        except DoesNotFitError:
            continue
        if peak <= limit:
            return change, candidate, peak
    return None
