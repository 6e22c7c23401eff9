"""From the policy's action rows to the environment's actions."""

from __future__ import annotations

from typing import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .rotations import (
    ROT6D_LAYOUTS,
    matrix_to_axis_angle,
    matrix_to_euler_xyz,
    matrix_to_quat_xyzw,
    quat_xyzw_to_wxyz,
)
from .tasks.profiles import ARM_WIDTH, ClientProfile, GripperRule


def _axis_angle_float32(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """As robosuite computes it: a quaternion in float32, so that tiny turns vanish.

    Below about 4.5e-4 rad the float32 w is 1 and the result is exactly zero.
    """
    quat = matrix_to_quat_xyzw(np.asarray(matrix, np.float32)).astype(np.float32)
    w = min(float(quat[3]), 1.0)
    sine = np.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return quat[:3].astype(np.float64) * (2.0 * np.arccos(w)) / sine


def _quat_wxyz(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return quat_xyzw_to_wxyz(matrix_to_quat_xyzw(matrix))


_FROM_MATRIX: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "axis_angle": matrix_to_axis_angle,
    "axis_angle_float32": _axis_angle_float32,
    "euler_xyz": matrix_to_euler_xyz,
    "quat_xyzw": matrix_to_quat_xyzw,
    "quat_wxyz": _quat_wxyz,
    # Undoes the reading of w, x, y, z as x, y, z, w: the simulator gets its own order again.
    "quat_wxyz_as_xyzw": matrix_to_quat_xyzw,
}


def gripper_command(rule: GripperRule, probability: float) -> tuple[float, ...]:
    """The numbers that `rule` has for a probability of closed."""
    real = np.float32 if rule.float32 else np.float64
    p, threshold = real(probability), real(rule.threshold)
    closed = p >= threshold if rule.closed_at_threshold else p > threshold
    return rule.closed if closed else rule.open


def row_to_action(profile: ClientProfile, row: ArrayLike) -> NDArray[np.floating]:
    """Action row [10 * arms or more] -> the environment's action, see `ActionForm`."""
    form, values = profile.action, np.asarray(row, np.float64)
    parts: list[ArrayLike] = []
    for arm in range(form.arms):
        one = values[arm * ARM_WIDTH : (arm + 1) * ARM_WIDTH]
        turn = _FROM_MATRIX[form.rotation_form](ROT6D_LAYOUTS[profile.rotation].to_matrix(one[3:9]))
        if any(form.euler_offset):
            turn = turn + np.asarray(form.euler_offset)
        parts += [one[:3] + np.asarray(form.shift), turn, gripper_command(form.gripper, one[9])]
    return np.concatenate(parts).astype(form.dtype)


def commanded_poses(profile: ClientProfile, row: ArrayLike) -> list[NDArray[np.float64]]:
    """Xyz and orthonormal 6-D rotation [9] of each arm, as the environment was told them."""
    layout, values = ROT6D_LAYOUTS[profile.rotation], np.asarray(row, np.float64)
    poses = []
    for arm in range(profile.action.arms):
        one = values[arm * ARM_WIDTH : arm * ARM_WIDTH + 9]
        poses.append(np.concatenate((one[:3], layout.from_matrix(layout.to_matrix(one[3:])))))
    return poses
