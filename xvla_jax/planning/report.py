"""One plan: all that is known of a run on a slice, as plain values for tables and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

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
    mesh = run.mesh(list(target.devices))
    limit = target.chip.hbm_bytes
    state = run.state(mesh)
    stored = {
        field.name: bytes_of(getattr(state, field.name)) for field in dataclasses.fields(state)
    }
    plan: dict[str, Any] = {
        "topology": target.name,
        "devices": len(target.devices),
        "mesh": dict(mesh.shape),
        "batch_size": run.batch_size,
        "views": run.views,
        "dtype": str(run.dtype.__name__),
        "remat": run.remat,
        "hbm_limit": limit,
        "checkpoint": stored,
        "host_ram": host_ram(state_bytes=sum(stored.values()), target=target, pipeline=pipeline),
        "host_ram_limit": target.chip.host_ram,
        "hosts": target.hosts,
    }

    def measure(candidate: Run) -> int:
        say(
            f"compiling batch {candidate.batch_size}, remat {candidate.remat}, "
            f"fsdp {candidate.fsdp} for {target.name}"
        )
        return step_program(candidate, target).memory.peak

    say(f"compiling the train step for {target.name}")
    try:
        program = step_program(run, target)
    except DoesNotFitError as error:
        plan |= {"fits": False, "needed": error.needed}
        program = None
    if program is not None:
        plan |= describe_program(program, target)
    if not plan["fits"]:
        found = search.nearest_fit(
            run,
            measure,
            devices=mesh.size,
            held=lambda candidate: bytes_per_chip(
                candidate.state(candidate.mesh(list(target.devices)))
            ),
            limit=limit,
        )
        plan["nearest"] = found and {
            "change": found[0],
            "peak": found[2],
            "accumulation": run.batch_size // found[1].batch_size,
        }
    elif largest and program is not None:
        best = search.largest_batch(
            run, program.memory.peak, measure, devices=mesh.size, limit=limit
        )
        plan["largest"] = dataclasses.asdict(best)
    if inference:
        say(f"compiling the sampler for one device of {target.name}")
        plan["sampler"] = describe_program(compile_program(run.lower_sampler(mesh)), target)
    return plan


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
