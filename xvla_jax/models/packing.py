"""Packed views: the vision tower sees the images that are there, not every slot of a batch.

A sample has V view slots, of which many robots fill one or two. Padded, the tower computes all of
them, and the results of absent views are replaced by zeros. Packed, each device puts the images of
its own samples side by side in a static number of places and runs the tower on these. Nothing is
sent between devices, and every number is that of the padded form up to rounding: drop path draws
for all slots and takes the draws of the images that it has.

A device that has more images than places computes the others in a second pass, which is compiled
but skipped in the steps in which no device needs it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from xvla_jax.errors import ConfigError
from xvla_jax.models.kernels import Array
from xvla_jax.sharding import batch_split, devices_of_batch

# Names in the compiled program, by which the planner knows them.
PACKING_SCOPE: Final = "pack_views"
OVERFLOW_SCOPE: Final = "packed_overflow"


class Packing(NamedTuple):
    """Places of the images of a batch; G devices have n slots each."""

    order: Array  # int32[G, n]: slots of a device, those with an image first
    images: Array  # int32[G]: images of a device
    places: int  # of a device in the first pass

    @property
    def overflow(self) -> Array:
        """``bool[]``: a device has more images than places."""
        return (self.images > self.places).any()

    @property
    def unused(self) -> Array:
        """``float32[]``: share of the places of the first pass without an image."""
        return 1.0 - jnp.minimum(self.images, self.places).mean() / self.places


def check_share(share: float) -> None:
    """Refuses what is no share of the slots.

    Raises:
        ConfigError: it is outside 0 .. 1.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(
            f"config.packed_views is {share:g}; a share of the view slots is expected: above 0, at "
            "most 1 (0 packs nothing)"
        )


def places_of(share: float, slots: int) -> int:
    """Returns the places that a share of a device's slots comes to, at least one."""
    return max(1, math.ceil(share * slots - 1e-6))


def packing_of(view_mask: Array, share: float) -> Packing | None:
    """Returns the places of the images of ``view_mask`` ``bool[B, v]``; None where all slots run.

    That is the case with a share of 0, with one that leaves no slot out, and where the devices do
    not divide the samples.
    """
    devices = devices_of_batch()
    if not share or view_mask.shape[0] % devices:
        return None
    present = batch_split(view_mask.reshape(devices, -1))  # [B, v] -> [G, n]
    places = places_of(share, present.shape[1])
    if places >= present.shape[1]:
        return None
    # Stable: images keep the order of their samples.
    order = jnp.argsort(~present, axis=1, stable=True).astype(jnp.int32)
    return Packing(order, present.sum(axis=1, dtype=jnp.int32), places)


def pack(x: Array, order: Array, places: int) -> Array:
    """Takes ``[G * n, ...] -> [G * places, ...]``, the first slots of each device's ``order``."""
    groups, slots = order.shape
    with jax.named_scope(PACKING_SCOPE):
        taken = _take(x.reshape(groups, slots, *x.shape[1:]), order[:, :places])
        return taken.reshape(groups * places, *x.shape[1:])


def unpack(first: Array, second: Array, order: Array) -> Array:
    """Returns what `pack` took to its slots: ``first`` places and the others, ``[G * n, ...]``."""
    groups, slots = order.shape
    shape = first.shape[1:]
    with jax.named_scope(PACKING_SCOPE):
        parts = [part.reshape(groups, -1, *shape) for part in (first, second)]
        # A permutation and its inverse: the gradient is a gather too, not a sum.
        back = jnp.argsort(order, axis=1).astype(jnp.int32)
        taken = _take(jnp.concatenate(parts, axis=1), back)  # [G, n, ...]
        return taken.reshape(groups * slots, *shape)


def _take(x: Array, places: Array) -> Array:
    """Takes rows of each device: ``[G, n, ...]``, ``int32[G, m]`` -> ``[G, m, ...]``."""

    def take(rows: Array, places: Array) -> Array:
        return rows.at[places].get(mode="promise_in_bounds", unique_indices=True)

    return batch_split(jax.vmap(take)(batch_split(x), places))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def second_pass(run: Callable[..., Array], needed: Array, variables: Any, *others: Any) -> Array:
    """Returns ``run(variables, *others)`` if ``needed`` ``bool[]``, else zeros of that shape.

    The backward pass runs it again, in a conditional of its own: a step that does not need it
    keeps nothing for it, and spends zeros for the gradients alone.
    """
    shape = jax.eval_shape(run, variables, *others)
    with jax.named_scope(OVERFLOW_SCOPE):
        return jax.lax.cond(
            needed, run, lambda *_: jnp.zeros(shape.shape, shape.dtype), variables, *others
        )


def _forward(run: Callable[..., Array], needed: Array, variables: Any, *others: Any) -> Any:
    return second_pass(run, needed, variables, *others), (needed, variables, others)


def _backward(run: Callable[..., Array], saved: Any, gradient: Array) -> Any:
    needed, variables, others = saved

    def pull(gradient: Array) -> Any:
        _, backward = jax.vjp(lambda v: run(v, *others), variables)
        return backward(gradient)[0]

    def nothing(_: Array) -> Any:
        return jax.tree.map(jnp.zeros_like, variables)

    with jax.named_scope(OVERFLOW_SCOPE):
        return None, jax.lax.cond(needed, pull, nothing, gradient), *(None for _ in others)


second_pass.defvjp(_forward, _backward)
