"""One plan: all that is known of a run on a slice, as plain values for tables and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from xvla_jax.planning import search
from xvla_jax.planning.chips import Slice
from xvla_jax.planning.estimate import estimate, host_ram
from xvla_jax.planning.guards import GUARDS
from xvla_jax.planning.programs import (
    DoesNotFitError,
    Memory,
    Program,
    Run,
    bytes_of,
    bytes_per_chip,
    compile_program,
    step_program,
)


def make_plan(
    run: Run,
    target: Slice,
    *,
    pipeline: Mapping[str, int],
    inference: bool = False,
    largest: bool = True,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Compiles a run for a slice, and what its questions need besides.

    Args:
        run: the experiment.
        target: the slice.
        pipeline: bytes of the data pipeline on a host, by term.
        inference: the sampler for one observation is compiled too.
        largest: the largest batch that fits is searched for.
        say: told what is being compiled, as each compilation takes minutes.

    Returns:
        Plain values; keys that were not asked for, or have no answer, are absent.
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
        plan |= describe_program(step_program(run, target), target)
    except DoesNotFitError as error:
        plan |= {"fits": False, "needed": error.needed}
    if not plan["fits"]:
        plan["nearest"] = _nearest(run, target, measure)
    elif largest:
        best = search.largest_batch(
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


def _mesh(run: Run, target: Slice) -> Mesh:
    return run.mesh(list(target.devices))


def _circumstances(run: Run, target: Slice, pipeline: Mapping[str, int]) -> dict[str, Any]:
    """All that is known before anything is compiled."""
    mesh = _mesh(run, target)
    state = run.state(mesh)
    held = {field.name: bytes_of(getattr(state, field.name)) for field in dataclasses.fields(state)}
    stored = {name: size for name, size in held.items() if name != "base"}  # see TrainState
    return {
        "topology": target.name,
        "devices": len(target.devices),
        "mesh": dict(mesh.shape),
        "batch_size": run.batch_size,
        "views": run.views,
        "dtype": str(run.dtype.__name__),
        "remat": run.remat,
        "hbm_limit": target.chip.hbm_bytes,
        "state_per_chip": bytes_per_chip(state),
        "checkpoint": stored,
        "host_ram": host_ram(state_bytes=sum(held.values()), target=target, pipeline=pipeline),
        "host_ram_limit": target.chip.host_ram,
        "hosts": target.hosts,
    }


def _nearest(run: Run, target: Slice, measure: search.Measure) -> dict[str, Any] | None:
    found = search.nearest_fit(
        run,
        measure,
        devices=len(target.devices),
        held=lambda candidate: bytes_per_chip(candidate.state(_mesh(candidate, target))),
        limit=target.chip.hbm_bytes,
    )
    if found is None:
        return None
    change, candidate, peak = found
    steps = run.batch_size // candidate.batch_size
    return {"change": change, "peak": peak, "accumulation": steps}


def describe_program(program: Program, target: Slice) -> dict[str, Any]:
    """Memory, work, time and guards of a compiled program."""
    found = estimate(program.module, target)
    return {
        "fits": program.memory.peak <= target.chip.hbm_bytes,
        "memory": _memory(program.memory),
        "flops": found.flops,
        "model_flops": found.model_flops,
        "hbm_bytes": found.hbm_bytes,
        "ici_bytes": dict(found.ici_bytes),
        "core_seconds": found.core_seconds,
        "ici_seconds": found.ici_seconds,
        "fastest_seconds": found.fastest,
        "slowest_seconds": found.slowest,
        "limited_by": found.limited_by,
        "mfu_bound": found.mfu_bound,
        "compile_seconds": program.seconds,
        "guards": {name: rule(program.module) for name, rule in GUARDS.items()},
    }


def _memory(memory: Memory) -> dict[str, int]:
    return dataclasses.asdict(memory) | {"peak": memory.peak}
