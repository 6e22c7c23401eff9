"""Dropout whose masks are made by themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class Dropout(nn.Module):
    """Drops each element with probability ``rate`` and scales the others by 1 / keep.

    The masks are those of ``nn.Dropout``, but the compiler may not fuse the making of one with the
    product that it masks: TPU's does, and then takes four times as long for an MLP.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool | None = None) -> jax.Array:
        """An array of any shape to one of the same; ``deterministic`` drops nothing."""
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        if deterministic or self.rate == 0.0:
            return x
        if self.rate == 1.0:  # the gradient of what is dropped would be 0 / 0
            return jnp.zeros_like(x)
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        kept = jax.lax.optimization_barrier(kept)
        return jax.lax.select(kept, x / keep, jnp.zeros_like(x))
