"""Where the hands are in a trajectory, and how far they move and turn between frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.poses import ARM_WIDTH
from data.spec import DatasetSpec
from data.trajectory import STILLNESS_LAYOUT, Trajectory

Float64 = NDArray[np.float64]
GRIPPER = ARM_WIDTH - 1
_TINY = 1e-12


def hand_rows(trajectory: Trajectory, spec: DatasetSpec) -> Float64:
    """EE6D rows of each arm: [arms, T, 10]; no arms where the row knows joints alone."""
    rows = trajectory.poses if not spec.joints else trajectory.still_rows
    if rows is None:
        return np.zeros((0, len(trajectory.poses), ARM_WIDTH))
    return np.stack(np.split(rows, rows.shape[1] // ARM_WIDTH, axis=1)[: len(spec.arms)])


def rotation_columns(hands: Float64, spec: DatasetSpec) -> Float64:
    """First two matrix columns [arms, T, 3, 2] of `hand_rows`."""
    layout = STILLNESS_LAYOUT if spec.joints else spec.rotation_layout
    six = hands[..., 3:GRIPPER]
    if layout == "contiguous":
        return six.reshape(*six.shape[:-1], 2, 3).swapaxes(-1, -2)
    return six.reshape(*six.shape[:-1], 3, 2)


def skew(columns: Float64) -> Float64:
    """How far columns [..., 3, 2] are from orthonormal: the largest entry of |C'C - 1|, [...]."""
    gram = columns.swapaxes(-1, -2) @ columns
    return np.abs(gram - np.eye(2)).max(axis=(-1, -2))


def matrices(columns: Float64) -> Float64:
    """The nearest rotations [..., 3, 3] by Gram and Schmidt; a zero column gives no rotation."""
    first: NDArray[Any] = columns[..., 0] / np.maximum(_norm(columns[..., 0]), _TINY)
    second = columns[..., 1] - (first * columns[..., 1]).sum(-1, keepdims=True) * first
    second = second / np.maximum(_norm(second), _TINY)
    return np.stack((first, second, np.cross(first, second)), axis=-1)


def angles(one: Float64, other: Float64) -> Float64:
    """Angle (rad) of the rotation between matrices [..., 3, 3], [...]."""
    trace = (one * other).sum(axis=(-1, -2))
    return np.arccos(np.clip((trace - 1) / 2, -1.0, 1.0))


def _norm(vectors: Float64) -> Float64:
    return np.linalg.norm(vectors, axis=-1, keepdims=True)
