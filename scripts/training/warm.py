"""Compiles the programs of a run into the cache, so that ``scripts.train`` finds them there."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from scripts.training.run import TrainingRun
from xvla_jax.compilation.program_cache import counts, not_kept
from xvla_jax.training.state import fresh_program


class End(enum.StrEnum):
    """State of a program in the cache, as it is said."""

    FOUND = "was there already"
    KEPT = "is kept now"
    LOST = "is not kept"  # a line of the cache says why


class Warmed(NamedTuple):
    """A program that was read from the cache or compiled for it."""

    name: str
    seconds: float  # to lower it, and to compile or to read it
    end: End


def warm(run: TrainingRun, *, say: Callable[[str], None]) -> Iterator[Warmed]:
    """Compiles each program of a run for this machine's devices.

    Args:
        run: opened without weights.
        say: called with the name of each program before it is compiled, as that takes minutes.
    """
    for name, lower in _programs(run).items():
        say(f"compiling {name}")
        (_, made), lost = counts(), not_kept()
        began = time.monotonic()
        lower().compile()
        end = End.FOUND if counts()[1] == made else End.KEPT
        yield Warmed(name, time.monotonic() - began, End.LOST if not_kept() > lost else end)


def _programs(run: TrainingRun) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """Returns the programs of a run by name; its validation is compiled when it is due."""
    return {"the initial state": lambda: _lower_fresh(run), "the train step": run.lower_step}


def _lower_fresh(run: TrainingRun) -> jax.stages.Lowered:
    given = run.loaded is not None
    make = fresh_program(run.recipe, run.mesh, given=given)
    # Two programs of one number each, which the run needs as well, make the key.
    key: Any = jax.random.key(run.config.seed, impl="rbg")
    return make.lower(run.abstract_state.params if given else key)
