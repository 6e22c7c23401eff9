"""Colour jitter of a training picture, to the bit what torchvision's ColorJitter does with Pillow.

Brightness blends with black, contrast with the rounded mean grey, saturation with the grey picture;
each of the three rounds to uint8. Their order and factors are drawn, a view at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from data.images import UInt8
from data.sampling import permutation, uniforms

STRENGTH = 0.2  # factors are in 1 - 0.2 .. 1 + 0.2
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Jitter:
    """Factors of brightness, contrast and saturation, and the order in which they are applied."""

    factors: tuple[float, ...]
    order: tuple[int, ...]


def draw_jitter(seed: int, *purpose: str | int) -> Jitter:
    """The jitter that `seed` and `purpose` decide."""
    count = len(ENHANCERS)
    factors = 1.0 + STRENGTH * (2.0 * uniforms(count, seed, *purpose, "factors") - 1.0)
    order = permutation(count, seed, *purpose, "order")
    return Jitter(tuple(factors.tolist()), tuple(order.tolist()))


def jittered(pixels: UInt8, jitter: Jitter) -> UInt8:
    """Pixels uint8[H, W, 3] RGB, jittered."""
    picture = Image.fromarray(pixels)
    for which in jitter.order:
        picture = ENHANCERS[which](picture).enhance(jitter.factors[which])
    return np.asarray(picture)
