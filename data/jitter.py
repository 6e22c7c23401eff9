"""Colour changes of a training image: drawn here, applied in the train step.

Factors and order mean what they mean to torchvision's ColorJitter. A Jitter is two numbers for each
of three operations; changing an image of 150,000 bytes on the host would cost more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from data.sampling import permutation, uniforms

STRENGTH = 0.2  # factors are in 1 - 0.2 .. 1 + 0.2
OPERATIONS = ("brightness", "contrast", "saturation")


class Jitter(NamedTuple):
    """A factor for each of `OPERATIONS`, 1 to leave it out, and the order in which they come."""

    factors: tuple[float, ...]
    order: tuple[int, ...]


UNCHANGED = Jitter((1.0, 1.0, 1.0), (0, 1, 2))


def draw_nothing(seed: int, *purpose: str | int) -> Jitter:  # noqa: ARG001
    """Colours as recorded."""
    return UNCHANGED


def draw_jitter(seed: int, *purpose: str | int) -> Jitter:
    """Draws the jitter that `seed` and `purpose` decide."""
    count = len(OPERATIONS)
    factors = 1.0 + STRENGTH * (2.0 * uniforms(count, seed, *purpose, "factors") - 1.0)
    order = permutation(count, seed, *purpose, "order")
    return Jitter(tuple(factors.tolist()), tuple(order.tolist()))


AUGMENTS: Mapping[str, Callable[..., Jitter]] = {"none": draw_nothing, "jitter": draw_jitter}


def any_drawn(augments: Iterable[str]) -> bool:
    """True where some row of a mixture changes colours; its batches then have jitter fields."""
    return any(AUGMENTS[augment] is not draw_nothing for augment in augments)
