"""Chunks that begin as promised: inpainting in the sampler, for control that does not wait.

While a robot waits for a chunk it goes on with the rows of the one before. Those are a *prefix* of
the new chunk: the first of them are committed (they will have been carried out when the answer
comes) and are returned as they are; the others are what the old chunk had in mind, and guide.

The network predicts the clean chunk, and the sampler makes x_t anew from one noise and the latest
clean estimate a. So a prefix c is put in place of the estimate's rows, and x_t there becomes
``t * noise + (1 - t) * c``: just what the network saw in training.

Rows that guide follow real-time chunking (Black, Galliker and Levine 2025): weights W that fall
from the end of the committed rows to the end of the prefix. There the velocity gets a correction
``min(beta, (t^2 + (1 - t)^2) / (t (1 - t))) * J^T W (c - a)``, with J the derivative of a by x_t. A
velocity is the clean estimate over t, so that the estimate is moved by t times as much:
``a + W g (c - a)`` with ``g = min(beta t, (t^2 + (1 - t)^2) / (1 - t))``. We take the unit matrix
for J and never more than the whole way, g = 1. It costs nothing, where J^T asks for a backward pass
through the head in every step, and our sampler has no state that J could be the derivative for, but
x_t that is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from xvla_jax.actions import ActionSpace
from xvla_jax.contract import Contract
from xvla_jax.errors import InputError

Array = jax.Array

_BETA: Final = 5.0  # as in the paper's experiments


class Prefix(struct.PyTreeNode):
    """Prefixes of a batch, of one shape whatever their lengths."""

    rows: Array  # float32[B, T, d], d the real or the padded width; as `postprocess` returns them
    weight: Array  # float32[B, T]: 1 committed, between 0 and 1 guiding, 0 free


def guide(prefix: Prefix, estimate: Array, t: Array, space: ActionSpace) -> Array:
    """The clean estimate ``[B, T, D]`` at times ``t`` ``[B]``, drawn to the prefix.

    Channels that are logits here are left: no network sees them, and `settle` has them as
    probabilities.
    """
    share = _share(prefix, t)
    drawn = (1.0 - share) * estimate + share * space.pad(prefix.rows)
    return jnp.where((share > 0.0) & ~_logits(space), drawn, estimate)


def settle(prefix: Prefix, chunk: Array, t: Array, space: ActionSpace) -> Array:
    """The end: a postprocessed chunk ``[B, T, d]`` whose committed rows are those of the prefix.

    Probabilities of rows that guide are drawn as other channels were at the last time ``t``
    ``[B]``.
    """
    width = chunk.shape[-1]
    rows, share = prefix.rows[..., :width], _share(prefix, t)
    drawn = (1.0 - share) * chunk + share * rows
    chunk = jnp.where((share > 0.0) & _logits(space)[:width], drawn, chunk)
    return jnp.where(prefix.weight[..., None] >= 1.0, rows, chunk)


def _share(prefix: Prefix, t: Array) -> Array:
    """How far rows are drawn, ``[B, T, 1]``."""
    paper = jnp.minimum(_BETA * t, (t**2 + (1.0 - t) ** 2) / (1.0 - t))  # at t = 1 beta
    guiding = prefix.weight * jnp.minimum(1.0, paper)[:, None]
    return jnp.where(prefix.weight >= 1.0, 1.0, guiding)[..., None]


def _logits(space: ActionSpace) -> np.ndarray:
    return np.isin(np.arange(space.width), space.logits)


def weights(length: int, committed: int, num_actions: int) -> np.ndarray:
    """float32[T]: 1 for committed rows, falling to the prefix' end as in the paper, then 0.

    ``c (e^c - 1) / (e - 1)`` with c falling evenly from below 1 to above 0.
    """
    row = np.arange(num_actions)
    c = np.clip((length - row) / (length - committed + 1), 0.0, 1.0)
    falling = c * np.expm1(c) / np.expm1(1.0)
    return np.where(row < committed, 1.0, np.where(row < length, falling, 0.0)).astype(np.float32)


def prepare(
    observation: Mapping[str, Any],
    space: ActionSpace,
    shape: tuple[int, int],
    contracts: Mapping[int, Contract],
    *,
    who: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``float32[T, D]`` and weights ``float32[T]`` of an observation; zeros without a prefix.

    Args:
        observation: may have ``prefix`` and ``prefix_committed``.
        space: of the policy.
        shape: T and D.
        contracts: of the policy, by domain.
        who: begins the message of an error.

    Raises:
        InputError: the prefix does not fit, or rows of its domain mean something only beside the
            proprio of their own query.
    """
    rows = np.zeros(shape, np.float32)
    if observation.get("prefix") is None:
        if observation.get("prefix_committed"):
            raise InputError(f"{who}prefix_committed is given without a prefix", field="prefix")
        return rows, np.zeros(shape[0], np.float32)
    given = np.asarray(observation["prefix"], np.float32)
    widths = (space.real_width, space.width)
    if given.ndim != 2 or len(given) > shape[0] or given.shape[1] not in widths:
        raise InputError(
            f"{who}prefix has shape {given.shape}; up to {shape[0]} rows of {space.real_width} "
            f"numbers are expected by action space {space.mode!r}",
            field="prefix",
        )
    grippers = given[:, list(space.logits)]
    if not (np.isfinite(given).all() and (grippers >= 0).all() and (grippers <= 1).all()):
        raise InputError(
            f"{who}prefix has numbers that are not finite, or outside 0 .. 1 in channels "
            f"{space.logits}, which are probabilities; send rows as act returned them",
            field="prefix",
        )
    committed = observation.get("prefix_committed", len(given))
    if not 0 <= committed <= len(given):
        raise InputError(
            f"{who}prefix_committed is {committed}; 0 .. {len(given)}, the rows of prefix",
            field="prefix_committed",
        )
    contract = contracts.get(int(observation["domain_id"]))
    if contract is not None and contract.relative_channels:
        raise InputError(
            f"{who}prefix cannot be used in domain {contract.domain_id}: its channels "
            f"{contract.relative_channels} are relative to the proprio of their own query",
            field="prefix",
        )
    rows[: len(given), : given.shape[1]] = given
    return rows, weights(len(given), int(committed), shape[0])
