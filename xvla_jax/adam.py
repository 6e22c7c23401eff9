"""Clipping and Adam, arranged so that a donated state is updated where it lies.

Optax's own transformations give the same numbers. Compiled with donated moments they keep copies
of both, because a parameter's update reads the old moments again, and a scaled copy of the
gradients: three more times the parameters. The states are optax's, so checkpoints fit either.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales all gradients by one factor so that their norm is at most ``max_norm``; 0: never.

    ``update`` takes ``norm``, that of all gradients, as an extra argument: whoever reports it has
    computed it, and a second computation would keep the squares of all gradients in memory.

    Source: Pascanu et al. 2012, arXiv 1211.5063.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        if not max_norm:
            return updates, state
        # a product with a scalar is cheap enough for XLA to repeat it in each of its readers
        factor = max_norm / jnp.maximum(extra["norm"], max_norm)
        return jax.tree.map(lambda gradient: gradient * factor, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Adam's direction; its moments stay as they are where ``finite`` says so.

    ``update`` takes ``finite``, a bool scalar, as an extra argument. Where it is False the updates
    mean nothing, and the parameters must be kept by the caller.

    Source: Kingma and Ba 2015, arXiv 1412.6980.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        finite: Array = extra["finite"]
        count = state.count + finite.astype(jnp.int32)

        def moments(gradient: Array, mu: Array, nu: Array) -> tuple[Array, Array]:
            first = jnp.where(finite, b1 * mu + (1 - b1) * gradient, mu)
            second = jnp.where(finite, b2 * nu + (1 - b2) * jnp.square(gradient), nu)
            # Whoever reads the new moments gets them from memory: recomputed from the old ones,
            # they would keep those alive, and donated buffers could not be overwritten.
            return jax.lax.optimization_barrier((first, second))

        pairs = jax.tree.map(moments, updates, state.mu, state.nu)
        mu, nu = jax.tree.transpose(jax.tree.structure(updates), jax.tree.structure((0, 0)), pairs)
        seen = jnp.maximum(count, 1).astype(jnp.float32)  # 0 only where nothing was finite yet
        correct1, correct2 = 1 - b1**seen, 1 - b2**seen
        directions = jax.tree.map(
            lambda m, v: (m / correct1) / (jnp.sqrt(v / correct2) + eps), mu, nu
        )
        return directions, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)
