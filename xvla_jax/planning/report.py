"""The plan of a run on a slice as plain values, and searches for a batch or config that fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from jax.sharding import Mesh

from xvla_jax.models.layers import REMAT
from xvla_jax.planning.attention import summary
from xvla_jax.planning.chips import Slice, ring_hops
from xvla_jax.planning.programs import (
    GUARDS,
    DoesNotFitError,
    Memory,
    Program,
    Run,
    bytes_of,
    bytes_per_chip,
    compile_program,
    step_program,
)
from xvla_jax.planning.traffic import by_stage, estimate, host_ram

# Returns the peak bytes of a run on one chip, or raises DoesNotFitError: a compilation either way.
Measure = Callable[[Run], int]
_MARGIN: Final = 0.98  # of the limit, as memory does not grow in a straight line
_APART: Final = ("base", "teacher")  # of a train state, in no checkpoint
_TRIES: Final = 3  # compilations near the limit


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """Result of `largest_batch`.

    Attributes:
        batch_size: the largest that a compilation has shown to fit.
        peak: its bytes on one chip.
        per_sample: bytes of activations for each sample on a chip.
        compilations: number of them in the search.
    """

    batch_size: int
    peak: int
    per_sample: float
    compilations: int


def make_plan(
    run: Run,
    target: Slice,
    *,
    pipeline: Mapping[str, int],
    inference: bool = False,
    largest: bool = True,
    stages: bool = False,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Compiles a run for a slice and answers whether it fits, how fast it is, and what would fit.

    Args:
        run: the experiment.
        target: the slice.
        pipeline: bytes of the data pipeline on a host, by term.
        inference: compile the sampler for one observation too.
        largest: search for the largest batch that fits.
        stages: list the train step's work by stage, pass and kind.
        say: called with the name of each program to compile, as that takes minutes.

    Returns:
        Plain values, without the keys that were not asked for or have no answer.
    """
    plan = _circumstances(run, target, pipeline)

    def measure(candidate: Run) -> int:
        say(
            f"compiling batch {candidate.batch_size}, remat {candidate.remat}, "
            f"fsdp {candidate.fsdp} for {target.name}"
        )
        return step_program(candidate, target).memory.peak

    say(f"compiling the train step for {target.name}")
    try:
        program = step_program(run, target)
        plan |= describe_program(program, target)
        if stages:
            shares = by_stage(program.module, target)
            plan["by_stage"] = [dataclasses.asdict(share) for share in shares]
    except DoesNotFitError as error:
        plan |= {"fits": False, "needed": error.needed}
    if not plan["fits"]:
        plan["nearest"] = _nearest(run, target, measure)
    elif largest:
        best = largest_batch(
            run,
            plan["memory"]["peak"],
            measure,
            devices=len(target.devices),
            limit=target.chip.hbm_bytes,
        )
        plan["largest"] = dataclasses.asdict(best)
    if inference:
        say(f"compiling the sampler for one device of {target.name}")
        sampler = compile_program(run.lower_sampler(_mesh(run, target)))
        plan["sampler"] = describe_program(sampler, target)
    return plan


def describe_program(program: Program, target: Slice) -> dict[str, Any]:
    """Returns memory, work, time and guards of a compiled program."""
    roofline = estimate(program.module, target)
    return {
        "fits": program.memory.peak <= target.chip.hbm_bytes,
        "memory": _memory(program.memory),
        "flops": roofline.flops,
        "model_flops": roofline.model_flops,
        "hbm_bytes": roofline.hbm_bytes,
        "ici_bytes": dict(roofline.ici_bytes),
        "core_seconds": roofline.core_seconds,
        "ici_seconds": roofline.ici_seconds,
        "fastest_seconds": roofline.fastest,
        "slowest_seconds": roofline.slowest,
        "limited_by": roofline.limited_by,
        "mfu_bound": roofline.mfu_bound,
        "compile_seconds": program.seconds,
        "guards": {name: rule(program.module) for name, rule in GUARDS.items()},
    }


def largest_batch(
    run: Run, peak: int, measure: Measure, *, devices: int, limit: float
) -> LargestBatch:
    """Extrapolates memory from two batches to the limit, and compiles there.

    Args:
        run: one that fits.
        peak: its bytes.
        measure: compiles a run.
        devices: the batch is a multiple of their number.
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


def nearest_fit(
    run: Run, measure: Measure, *, devices: int, held: Callable[[Run], int], limit: float
) -> tuple[str, Run, int] | None:
    """Returns the first of `neighbours` that fits: flags to change, the run, its peak bytes.

    Args:
        run: one that does not fit.
        measure: compiles a run.
        devices: of the mesh.
        held: returns the bytes of a run's train state on one chip; a run whose state alone does
            not fit is not compiled.
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


def neighbours(run: Run, *, devices: int) -> Iterator[tuple[str, Run]]:
    """Yields runs that need less memory, the cheapest change first; changes add up.

    Yields:
        The flags to change on the command line, and the run.
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


def _circumstances(run: Run, target: Slice, pipeline: Mapping[str, int]) -> dict[str, Any]:
    """Returns the values that are known before anything is compiled."""
    mesh = _mesh(run, target)
    state = run.state(mesh)
    held = {field.name: bytes_of(getattr(state, field.name)) for field in dataclasses.fields(state)}
    stored = {name: size for name, size in held.items() if name not in _APART}
    return {
        "topology": target.name,
        "devices": len(target.devices),
        "mesh": dict(mesh.shape),
        "ring_hops": ring_hops(mesh, target),
        "batch_size": run.batch_size,
        "views": run.views,
        "dtype": str(run.dtype.__name__),
        "remat": run.remat,
        **({"attention": _attention(run)} if run.attention != "xla" else {}),
        "hbm_limit": target.chip.hbm_bytes,
        "state_per_chip": bytes_per_chip(state),
        **({"teacher_per_chip": bytes_per_chip(state.teacher)} if run.distill else {}),
        "checkpoint": stored,
        "host_ram": host_ram(state_bytes=sum(held.values()), target=target, pipeline=pipeline),
        "host_ram_limit": target.chip.host_ram,
        "hosts": target.hosts,
    }


def _attention(run: Run) -> str:
    return summary(run.recipe.model, run.processor)


def _mesh(run: Run, target: Slice) -> Mesh:
    return run.mesh(list(target.devices))


def _nearest(run: Run, target: Slice, measure: Measure) -> dict[str, Any] | None:
    fit = nearest_fit(
        run,
        measure,
        devices=len(target.devices),
        held=lambda candidate: bytes_per_chip(candidate.state(_mesh(candidate, target))),
        limit=target.chip.hbm_bytes,
    )
    if fit is None:
        return None
    change, candidate, peak = fit
    steps = run.batch_size // candidate.batch_size
    return {"change": change, "peak": peak, "accumulation": steps}


def _changes(run: Run) -> str:
    return (
        f"--config.remat={run.remat} --config.mesh.data={run.data} "
        f"--config.mesh.fsdp={run.fsdp} --config.batch_size={run.batch_size}"
    )


def _memory(memory: Memory) -> dict[str, int]:
    return dataclasses.asdict(memory) | {"peak": memory.peak}
