"""Finds the random draws of a program by tracing it; models with chosen rates."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final
from unittest import mock

import jax
from jax.extend import core

from xvla_jax.config import XVLAConfig

Shape = tuple[int, ...]

HEAD_RATE: Final = 0.1  # fixed in the reference
# One rate for each kind of place, so that none can stand for another; see `with_rates`.
RATES: Final[Mapping[str, Any]] = {"text": (0.1, 0.3, 0.2), "path": 0.4}


def with_rates(config: XVLAConfig, *, text: tuple[float, float, float], path: float) -> XVLAConfig:
    """The model with other rates: (dropout, attention, activation) of the text, and drop path."""
    rates = dict(zip(("dropout", "attention_dropout", "activation_dropout"), text, strict=True))
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, **rates),
        vision=dataclasses.replace(config.vision, drop_path_rate=path),
    )


# The primitives that make random bits, of any generator.
_DRAWS = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")


def random_sites(program: Any, *args: Any) -> tuple[set[tuple[float, Shape]], Counter[Shape]]:
    """Random sites of ``program(*args)``, which must not have been traced before.

    Returns:
        (Probability of True, shape) of every Bernoulli mask, once each, and how often each shape is
        drawn, masks included; a scan's body counts once a turn.
    """
    masks: set[tuple[float, Shape]] = set()
    draws: Counter[Shape] = Counter()
    bernoulli = jax.random.bernoulli

    def spy(key: Any, p: float, shape: Shape) -> Any:
        masks.add((round(float(p), 5), tuple(shape)))
        return bernoulli(key, p, shape)

    def visit(jaxpr: Any, times: int) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name in _DRAWS:
                draws[equation.outvars[-1].aval.shape] += times
            for inner in _inner(equation):
                visit(inner, times * equation.params.get("length", 1))

    with mock.patch.object(jax.random, "bernoulli", spy):
        # a jitted one as it is: its compiler options may not be those of an inner function
        traced = program if hasattr(program, "trace") else jax.jit(program)
        visit(traced.trace(*args).jaxpr.jaxpr, 1)
    return masks, draws


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
