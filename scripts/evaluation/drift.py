"""Distances of chunks of actions, by quantity: millimetres, degrees, decisions of a gripper."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from eval.rotations import ROT6D_LAYOUTS
from xvla_jax.actions import POSES, ActionSpace, action_kind
from xvla_jax.checkpoint_tools.certificate import SHARE, Drift
from xvla_jax.contract import UNKNOWN, Contract

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two [N, T, d] -> [N, T]
_ARM: Final = 10  # channels of an arm of poses
_CLOSED: Final = 0.5  # of a gripper's probability
# unit of a channel -> unit of its drift, and the factor
_SHOWN: Final[Mapping[str, tuple[str, float]]] = {"m": ("mm", 1e3), "rad": ("deg", 180 / math.pi)}


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A part of an action, and how far two of it are apart.

    Attributes:
        name: with its arm, or of the joint.
        unit: of the distance.
        channels: of the action.
        arm: channels of its arm; where all recordings have zeros there is none.
        distance: between two arrays of the channels.
    """

    name: str
    unit: str
    channels: slice
    arm: slice
    distance: Distance


def quantities(space: ActionSpace, contract: Contract) -> list[Quantity]:
    """Returns the quantities of a domain's actions, without channels that its data lack."""
    if action_kind(space.mode) == POSES:
        named = _poses(contract.rotation_layout)
    else:
        named = [_joint(i, space, contract) for i in range(space.real_width)]
    lacking = set(contract.unrecorded)
    return [q for q in named if not lacking & set(range(q.channels.start, q.channels.stop))]


def drifts(
    named: Sequence[Quantity], default: np.ndarray, plan: np.ndarray, recorded: np.ndarray
) -> dict[str, Drift]:
    """Returns the drift of each quantity that the recorded actions have.

    Args:
        named: see `quantities`.
        default: actions [N, T, d] of the default plan.
        plan: of the other, from the same observations and noise.
        recorded: [N, T, d'].
    """
    measured = {}
    for quantity in named:
        if not recorded[..., quantity.arm].any():
            continue
        ours, theirs, true = (x[..., quantity.channels] for x in (plan, default, recorded))
        apart = quantity.distance(ours, theirs)
        measured[quantity.name] = Drift(
            unit=quantity.unit,
            mean=float(apart.mean()),
            p99=float(np.quantile(apart, 0.99)),
            worst=float(apart.max()),
            own_error=float(quantity.distance(theirs, true).mean()),
        )
    return measured


def _poses(layout: str) -> list[Quantity]:
    turned = functools.partial(_angle, layout)
    parts: Sequence[tuple[str, str, int, int, Distance]] = (
        ("position", "mm", 0, 3, _millimetres),
        ("rotation", "deg", 3, 9, turned),
        ("gripper", SHARE, 9, 10, _decided),
    )
    return [
        Quantity(f"{arm} {name}", unit, slice(first + a, first + b), slice(first, last), distance)
        for arm, first, last in (("left", 0, _ARM), ("right", _ARM, 2 * _ARM))
        for name, unit, a, b, distance in parts
    ]


def _joint(i: int, space: ActionSpace, contract: Contract) -> Quantity:
    stated = contract.channels[i] if i < len(contract.channels) else None
    name = (stated and stated.name) or f"channel {i}"
    if i in space.logits:
        return Quantity(name, SHARE, slice(i, i + 1), slice(None), _decided)
    unit, factor = stated.unit if stated else UNKNOWN, 1.0
    unit, factor = _SHOWN.get(unit, (unit, factor))
    scaled = functools.partial(_scaled, factor)
    return Quantity(name, unit, slice(i, i + 1), slice(None), scaled)


def _millimetres(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 1e3 * np.linalg.norm(a - b, axis=-1)


def _angle(layout: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between two rotations in degrees; exact for small ones, where a trace is not."""
    one, other = (ROT6D_LAYOUTS[layout].to_matrix(x) for x in (a, b))  # [N, T, 3, 3]
    chord = np.linalg.norm(one - other, axis=(-2, -1)) / math.sqrt(8)
    return np.degrees(2 * np.arcsin(np.minimum(chord, 1.0)))


def _decided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[..., 0] > _CLOSED) != (b[..., 0] > _CLOSED)).astype(np.float64)


def _scaled(factor: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return factor * np.abs(a - b)[..., 0]
