"""Colour jitter on the device, to the bit what torchvision's ColorJitter does with Pillow images.

An operation moves each picture away from a degenerate one or towards it (ImageEnhance):

    0 brightness   black
    1 contrast     the mean of the grey picture, rounded to a whole number
    2 saturation   the grey picture

    out = degenerate + factor * (picture - degenerate)

Product and sum are each rounded to float32, then the result is cut off to 0 .. 255 and truncated to
uint8, before the next operation.

A compiler may fuse that product and sum into one rounding (XLA does on CPU), which changes a
truncation now and then. Here a factor is the sum of two parts of at most 12 significant bits, so
that the parts' products with a difference of pixels are exact: fused or not, the same numbers come
out. What is needed of a backend is IEEE float32 addition in the order written, so not
``--xla_cpu_enable_fast_math`` (off by default). Measured on x86-64 CPU alone. Pillow for x86-64 is
meant; a Pillow that was itself compiled to fused instructions differs from it in those few pixels.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp

Array = jax.Array

_LOW_BITS: Final = 12  # of the 24 significant bits of a float32
_LUMA: Final = (19595, 38470, 7471)  # ITU-R 601 times 2**16, as Pillow converts to "L"


def jittered(images: Array, factors: Array, order: Array) -> Array:
    """The pictures, jittered; a picture whose factors are 1 comes back as it is.

    Args:
        images: uint8[B, V, H, W, 3] RGB, H * W at most 2**23 (sums are of 32 bits).
        factors: float32[B, V, 3] of brightness, contrast and saturation, finite and above 0.
        order: int32[B, V, 3], which operation comes first, second and third.

    Returns:
        uint8[B, V, H, W, 3].
    """
    # a channel at a time: the intermediates then fuse, and need a fifth of the memory
    channels = [images[..., c] for c in range(3)]
    for place in range(3):
        which = order[..., place, None]
        factor = jnp.take_along_axis(factors, which, axis=-1)
        grey = _grey(channels)
        mean = _rounded_mean(grey)
        kind = which[..., None]
        base = jnp.select([kind == 0, kind == 1], [jnp.zeros_like(grey), mean], grey)
        channels = [blend(base, channel, factor[..., None]) for channel in channels]
    return jnp.stack(channels, axis=-1)


def _grey(channels: list[Array]) -> Array:
    """int32[B, V, H, W] from red, green and blue."""
    luma = sum((w * c.astype(jnp.int32) for w, c in zip(_LUMA, channels, strict=True)), start=2**15)
    return jnp.asarray(luma) >> 16


def _rounded_mean(grey: Array) -> Array:
    """int32[B, V, 1, 1], the mean rounded half up."""
    count = grey.shape[-2] * grey.shape[-1]
    total = grey.sum(axis=(-2, -1), keepdims=True)
    whole = total // count
    return whole + (2 * (total - whole * count) >= count)


def blend(base: Array, channel: Array, factor: Array) -> Array:
    """uint8 ``base + factor * (channel - base)``, rounded as Pillow's ``Image.blend`` rounds.

    Args:
        base: whole numbers in 0 .. 255, of any type.
        channel: likewise.
        factor: float32; all three broadcast.
    """
    bits = jax.lax.bitcast_convert_type(factor, jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & -(2**_LOW_BITS), jnp.float32)
    start = base.astype(jnp.float32)
    difference = channel.astype(jnp.float32) - start
    product = high * difference + (factor - high) * difference
    return jnp.clip(start + product, 0.0, 255.0).astype(jnp.uint8)
