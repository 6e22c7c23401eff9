"""Sampler plans: how many denoising steps, which of them compute the context, when to stop.

A step of the head runs over the T action tokens and the tokens of the context, of which there are
eight times as many. The context hardly changes from step to step. A plan may therefore keep the
context's keys and values of each block from one step for the next ones, which then run over the
action tokens alone. `PLANS` is the table; ``xvla_jax.flow`` runs a row of it, and docs/
fast_and_smooth.md says what each costs and changes.

`TimeGrid` states the times of a sampler's steps for all that need them: the sampler, inpainting,
validation and the server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from xvla_jax.errors import ConfigError

Array = jax.Array
STEPS: Final = 10  # denoising steps, everywhere in X-VLA


class TimeGrid(NamedTuple):
    """Times of a sampler's steps: from 1 down to 1 / count, evenly spaced.

    Attributes:
        count: steps of each sample, int32[B].
        most: steps of the sample that has most; an int where all have the same, so that a
            program's work can be counted.
    """

    count: Array
    most: int | Array

    @classmethod
    def of(cls, steps: int | Array, batch: int) -> TimeGrid:
        """Returns the grid of ``steps``, one number or int32[B].

        Raises:
            ValueError: an int below 1.
        """
        if isinstance(steps, int) and steps < 1:
            raise ValueError(f"steps is {steps}; at least 1 is needed")
        count = jnp.broadcast_to(jnp.asarray(steps, jnp.int32), (batch,))
        return cls(count, steps if isinstance(steps, int) else jnp.max(count))

    def time(self, i: Array) -> Array:
        """Returns the time of step ``i``, float32[B]."""
        return (self.count - i).astype(jnp.float32) / self.count

    @property
    def last(self) -> Array:
        """Time of the last step, float32[B]."""
        return self.time(self.count - 1)

    def runs(self, i: Array) -> Array:
        """Returns bool[B], True for samples that have a step ``i``."""
        return i < self.count


class Form(NamedTuple):
    """Part of a plan that is compiled; plans of one form share a program and run in one batch.

    Attributes:
        refresh: steps that compute the context, 0 first; None for all of them.
        adaptive: samples stop by themselves.
    """

    refresh: tuple[int, ...] | None = None
    adaptive: bool = False


EXACT: Final = Form()


@dataclasses.dataclass(frozen=True)
class SamplerPlan:
    """A row of `PLANS`.

    Attributes:
        name: for requests, certificates and receipts.
        steps: of denoising; the most of them where a tolerance is given.
        refresh: steps that compute the context, 0 first; the others use its keys and values of the
            last one that did. None computes it in each step, as X-VLA does.
        tolerance: a sample is done when no channel that the network sees again has moved so far
            since the step before, in the network's units; 0 never stops.
    """

    name: str
    steps: int
    refresh: tuple[int, ...] | None = None
    tolerance: float = 0.0

    @property
    def form(self) -> Form:
        """The program that it needs."""
        return Form(self.refresh, self.tolerance > 0)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        refresh = None if self.refresh is None else list(self.refresh)
        return {"steps": self.steps, "refresh": refresh, "tolerance": self.tolerance}


_ROWS: Final = (
    SamplerPlan("exact10", STEPS),
    SamplerPlan("exact5", 5),
    SamplerPlan("exact3", 3),
    SamplerPlan("exact1", 1),
    SamplerPlan("refresh2", STEPS, refresh=(0, 5)),
    SamplerPlan("frozen10", STEPS, refresh=(0,)),
    SamplerPlan("frozen5", 5, refresh=(0,)),
    SamplerPlan("frozen3", 3, refresh=(0,)),
    SamplerPlan("frozen2", 2, refresh=(0,)),
    SamplerPlan("adaptive10", STEPS, tolerance=5e-4),
    SamplerPlan("adaptive_frozen10", STEPS, refresh=(0,), tolerance=5e-4),
)
PLANS: Final[Mapping[str, SamplerPlan]] = {row.name: row for row in _ROWS}
DEFAULT: Final = PLANS["exact10"]


def exact(steps: int) -> SamplerPlan:
    """Returns X-VLA's own sampler with a number of steps, for callers that ask for steps alone."""
    return SamplerPlan(f"exact{steps}", steps)


def named_plan(name: str, where: str = "plan") -> SamplerPlan:
    """Returns a row of `PLANS`.

    Raises:
        ConfigError: there is no row of that name; ``where`` says where the name was given.
    """
    if name not in PLANS:
        raise ConfigError(f"{where} is {name!r}; allowed are {', '.join(PLANS)}")
    return PLANS[name]
