"""Inpainting in the sampler: chunks that begin with given rows, for control without waiting.

While a robot waits for a chunk it executes rows of the previous one. Those rows are a *prefix* of
the new chunk. The first of them are committed: they will have been executed when the chunk arrives,
and are returned unchanged. The others guide: the new chunk is drawn towards them.

The network predicts the clean chunk, and the sampler builds each x_t from one noise and the latest
clean estimate a. A prefix c replaces rows of the estimate, so x_t there is
``t * noise + (1 - t) * c``, as the network saw it in training.

Guiding rows follow real-time chunking (Black, Galliker and Levine 2025), with weights W that fall
from the end of the committed rows to the end of the prefix. The paper corrects the velocity by
``min(beta, (t^2 + (1 - t)^2) / (t (1 - t))) * J^T W (c - a)``, J being the derivative of a by x_t.
A velocity is the clean estimate over t, so the estimate moves t times as far: ``a + W g (c - a)``
with ``g = min(beta t, (t^2 + (1 - t)^2) / (1 - t))``. Here J is the identity and g is at most 1:
J^T would need a backward pass through the head in each step, and x_t is no state of this sampler
that a derivative could correct, as each step builds it again.

Weights that were trained for delays (``config.rtc``; Black, Ren, Equi and Levine 2025) know
committed rows by their time: x_t is the prefix itself there and its time 0, in every step. Nothing
guides then. `MODES` has the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from xvla_jax.actions import ActionSpace
from xvla_jax.contract import Contract
from xvla_jax.errors import InputError
from xvla_jax.preprocessing.scaling import Scaling

Array = jax.Array

_BETA: Final = 5.0  # as in the paper's experiments


class Mode(NamedTuple):
    """Way to continue a prefix.

    Attributes:
        guides: rows behind the committed ones draw the chunk towards them; otherwise they are free.
        trained: needs weights that were trained for delays.
    """

    guides: bool
    trained: bool


INPAINT: Final = "inpaint"
MODES: Final[Mapping[str, Mode]] = {
    INPAINT: Mode(guides=True, trained=False),
    "trained": Mode(guides=False, trained=True),
}


class Prefix(struct.PyTreeNode):
    """Prefixes of a batch; the shape does not depend on their lengths."""

    rows: Array  # float32[B, T, d], d the real or the padded width; postprocessed
    weight: Array  # float32[B, T]: 1 committed, between 0 and 1 guiding, 0 free
    clean: Array | None = None  # int32[B]: so many first rows are at time 0; None: no model knows


def row_times(prefix: Prefix | None, t: Array) -> Array:
    """Returns the times of the network: ``t`` [B], or [B, T] where rows may have one of their own.

    Times are 0 in the clean rows of a prefix, so x_t is the prefix there.
    """
    if prefix is None or prefix.clean is None:
        return t
    return jnp.where(_clean(prefix), 0.0, t[:, None])


def begin(prefix: Prefix | None, estimate: Array, space: ActionSpace) -> Array:
    """Puts the clean rows of a prefix into the estimate ``[B, T, D]`` before the first step."""
    if prefix is None or prefix.clean is None:
        return estimate
    put = _clean(prefix)[..., None] & ~_logits(space)  # [B, T, D]
    return jnp.where(put, space.pad(prefix.rows), estimate)


def _clean(prefix: Prefix) -> Array:
    """Returns bool ``[B, T]``, True for the clean rows."""
    return jnp.arange(prefix.weight.shape[1]) < jnp.asarray(prefix.clean)[:, None]


def guide(prefix: Prefix, estimate: Array, t: Array, space: ActionSpace) -> Array:
    """Draws the clean estimate ``[B, T, D]`` at times ``t`` ``[B]`` towards the prefix.

    Channels of logits stay: the network never sees them, and `settle` draws them as probabilities.
    """
    share = _share(prefix, t)
    drawn = (1.0 - share) * estimate + share * space.pad(prefix.rows)
    return jnp.where((share > 0.0) & ~_logits(space), drawn, estimate)


def settle(prefix: Prefix, chunk: Array, t: Array, space: ActionSpace) -> Array:
    """Puts the committed rows into a postprocessed chunk ``[B, T, d]``.

    Draws probabilities of guiding rows as `guide` drew other channels at the last time ``t``
    ``[B]``.
    """
    width = chunk.shape[-1]
    rows, share = prefix.rows[..., :width], _share(prefix, t)
    drawn = (1.0 - share) * chunk + share * rows
    chunk = jnp.where((share > 0.0) & _logits(space)[:width], drawn, chunk)
    return jnp.where(prefix.weight[..., None] >= 1.0, rows, chunk)


def _share(prefix: Prefix, t: Array) -> Array:
    """Returns the share ``[B, T, 1]`` of the way to the prefix that rows are drawn at ``t``."""
    paper = jnp.minimum(_BETA * t, (t**2 + (1.0 - t) ** 2) / (1.0 - t))  # at t = 1: beta
    guiding = prefix.weight * jnp.minimum(1.0, paper)[:, None]  # [B, T]
    return jnp.where(prefix.weight >= 1.0, 1.0, guiding)[..., None]


def _logits(space: ActionSpace) -> np.ndarray:
    """Returns bool ``[D]``, True for channels of logits."""
    return np.isin(np.arange(space.width), space.logits)


def weights(length: int, committed: int, num_actions: int) -> np.ndarray:
    """Returns float32[T]: 1 for committed rows, falling to the end of the prefix, then 0.

    As in the paper, ``c (e^c - 1) / (e - 1)`` with c falling evenly from below 1 to above 0.
    """
    row = np.arange(num_actions)
    c = np.clip((length - row) / (length - committed + 1), 0.0, 1.0)
    falling = c * np.expm1(c) / np.expm1(1.0)
    return np.where(row < committed, 1.0, np.where(row < length, falling, 0.0)).astype(np.float32)


def scaled(
    observation: Mapping[str, Any], space: ActionSpace, scaling: Scaling | None
) -> Mapping[str, Any]:
    """Returns the observation with its prefix in the network's units; None: they are the robot's.

    A prefix of a wrong width stays as it is: `prepare` refuses it by name.
    """
    prefix = observation.get("prefix")
    if scaling is None or prefix is None:
        return observation
    rows = np.asarray(prefix, np.float32)
    if rows.ndim != 2 or rows.shape[1] not in (space.real_width, space.width):
        return observation
    return {**observation, "prefix": scaling.scale(rows, what="prefix")}


def prepare(
    observation: Mapping[str, Any],
    space: ActionSpace,
    shape: tuple[int, int],
    contracts: Mapping[int, Contract],
    *,
    who: str,
    max_delay: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows ``float32[T, D]`` and weights ``float32[T]``; zeros without a prefix.

    Args:
        observation: may have ``prefix``, ``prefix_committed`` and ``prefix_mode``.
        space: of the policy.
        shape: T and D.
        contracts: of the policy, by domain.
        who: begins the message of an error.
        max_delay: most committed rows that the weights were trained for, see `XVLAConfig`.

    Raises:
        InputError: the prefix does not fit, or its domain or the weights do not allow it.
    """
    mode = _mode(observation, max_delay, who)
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
    committed = int(observation.get("prefix_committed", len(given)))
    most, of = len(given), "the rows of prefix"
    if mode.trained and max_delay < most:
        most, of = max_delay, "the delays that the weights know (config.rtc.max_delay)"
    if not 0 <= committed <= most:
        raise InputError(
            f"{who}prefix_committed is {committed}; 0 .. {most}, {of}", field="prefix_committed"
        )
    contract = contracts.get(int(observation["domain_id"]))
    if contract is not None and contract.relative_channels:
        raise InputError(
            f"{who}prefix cannot be used in domain {contract.domain_id}: its channels "
            f"{contract.relative_channels} are relative to the proprio of their own query",
            field="prefix",
        )
    rows[: len(given), : given.shape[1]] = given
    return rows, weights(len(given) if mode.guides else committed, committed, shape[0])


def clean_rows(observation: Mapping[str, Any], weight: np.ndarray) -> int:
    """Returns the number of rows at time 0, for weights of `prepare`: the committed, if trained."""
    trained = MODES[observation.get("prefix_mode") or INPAINT].trained
    return int((weight >= 1.0).sum()) if trained else 0


def _mode(observation: Mapping[str, Any], max_delay: int, who: str) -> Mode:
    """Returns the observation's row of `MODES`; refuses one that the weights do not know."""
    name = observation.get("prefix_mode") or INPAINT
    if name not in MODES:
        raise InputError(
            f"{who}prefix_mode is {name!r}; allowed are {', '.join(MODES)}", field="prefix_mode"
        )
    if MODES[name].trained and not max_delay:
        raise InputError(
            f"{who}prefix_mode is {name!r}, and these weights were not trained for delays "
            f"(config.rtc.max_delay); {INPAINT!r} needs no such training",
            field="prefix_mode",
        )
    return MODES[name]
