"""Colour jitter on the device: brightness, contrast and saturation as Pillow computes them.

Each number is what Pillow gives on the host, with integers and two roundings. The factors and the
order are drawn by ``data/jitter.py``, as a function of the sample.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp

Array = jax.Array

_LOW_BITS: Final = 12  # of the 24 significant bits of a float32
_LUMA: Final = (19595, 38470, 7471)  # ITU-R 601 times 2**16, as Pillow converts to "L"


def jittered(images: Array, factors: Array, order: Array) -> Array:
    """Applies brightness, contrast and saturation; an image whose factors are 1 is unchanged.

    Args:
        images: uint8[B, V, H, W, 3] RGB, H * W at most 2**23 (sums are of 32 bits).
        factors: float32[B, V, 3] of brightness, contrast and saturation, finite and above 0.
        order: int32[B, V, 3], which operation comes first, second and third.

    Returns:
        uint8[B, V, H, W, 3].
    """
    # a channel at a time: the intermediates then fuse, and need a fifth of the memory
    channels = [images[..., c] for c in range(3)]  # 3 times [B, V, H, W]
    for place in range(3):
        which = order[..., place, None]  # [B, V, 1]
        factor = jnp.take_along_axis(factors, which, axis=-1)  # [B, V, 1]
        grey = _grey(channels)
        mean = _rounded_mean(grey)
        # Each operation blends with another image: black, the mean grey, or the grey image.
        kind = which[..., None]  # [B, V, 1, 1]
        base = jnp.select([kind == 0, kind == 1], [jnp.zeros_like(grey), mean], grey)
        channels = [blend(base, channel, factor[..., None]) for channel in channels]
    return jnp.stack(channels, axis=-1)


def _grey(channels: list[Array]) -> Array:
    """Returns int32[B, V, H, W] from red, green and blue."""
    # half of 2**16 is added, so that the shift rounds
    luma = sum((w * c.astype(jnp.int32) for w, c in zip(_LUMA, channels, strict=True)), start=2**15)
    return jnp.asarray(luma) >> 16


def _rounded_mean(grey: Array) -> Array:
    """Returns int32[B, V, 1, 1], the mean rounded half up."""
    count = grey.shape[-2] * grey.shape[-1]
    total = grey.sum(axis=(-2, -1), keepdims=True)  # [B, V, 1, 1]
    floor = total // count
    return floor + (2 * (total - floor * count) >= count)


def blend(base: Array, channel: Array, factor: Array) -> Array:
    """Returns uint8 ``base + factor * (channel - base)``, rounded like Pillow's ``Image.blend``.

    Args:
        base: integers in 0 .. 255, of any dtype.
        channel: likewise.
        factor: float32; all three broadcast.
    """
    # XLA may fuse product and sum into one rounding, Pillow rounds twice. With its low bits apart,
    # each partial product is exact, so both ways give the same number.
    bits = jax.lax.bitcast_convert_type(factor, jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & -(2**_LOW_BITS), jnp.float32)
    start = base.astype(jnp.float32)
    difference = channel.astype(jnp.float32) - start
    product = high * difference + (factor - high) * difference
    return jnp.clip(start + product, 0.0, 255.0).astype(jnp.uint8)
