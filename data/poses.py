"""Raw robot state of one arm -> ten EE6D numbers: xyz (m), 6-D rotation, gripper (1 = closed)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from data.rotations import (
    ROT6D_LAYOUTS,
    Float64,
    check_rotations,
    columns_from_axis_angle,
    columns_from_euler_xyz,
    columns_from_quat_xyzw,
)

ARM_WIDTH = 10
ACTION_WIDTH = 2 * ARM_WIDTH  # left arm, then right arm


@dataclass(frozen=True)
class PoseEncoding:
    """How a recording writes a pose: xyz first, then `width` - 3 numbers of rotation."""

    width: int
    to_columns: Callable[[ArrayLike], Float64] | None  # None: 6-D already, and copied
    layouts: tuple[str, ...] = ()  # of what is copied, where it is not the row's own


POSE_ENCODINGS: dict[str, PoseEncoding] = {
    "xyz_euler_xyz": PoseEncoding(6, columns_from_euler_xyz),
    "xyz_axis_angle": PoseEncoding(6, columns_from_axis_angle),
    "xyz_quat_xyzw": PoseEncoding(7, columns_from_quat_xyzw),
    # RoboTwin: stored w, x, y, z and taken for x, y, z, w, in the released weights' data and in
    # their client alike; the rotation is another one, but the two mistakes cancel
    "xyz_quat_wxyz_as_xyzw": PoseEncoding(7, columns_from_quat_xyzw),
    "xyz_rot6d": PoseEncoding(9, None),
    # recordings of which it is not known whether columns or rows were written, and in which order;
    # the released weights were trained on the numbers as they are
    "xyz_rot6d_as_recorded": PoseEncoding(9, None, tuple(ROT6D_LAYOUTS)),
}


def xyz_rot6d(raw: ArrayLike, encoding: str, layout: str, *others: str) -> Float64:
    """Poses [T, width of the encoding] -> float64[T, 9], the rotation in `layout`.

    What is 6-D already is copied, and may be in one of `others` as well.

    Raises:
        FaultError: a rotation is zero, or copied and not orthonormal; the others are by formula.
    """
    values = np.asarray(raw, np.float64)
    row = POSE_ENCODINGS[encoding]
    if values.ndim != 2 or values.shape[1] != row.width:
        raise ValueError(f"pose encoding {encoding!r} takes [T, {row.width}], got {values.shape}")
    if row.to_columns is None:
        check_rotations(values[:, 3:], row.layouts or (layout, *others))
        return values
    rotation = ROT6D_LAYOUTS[layout](row.to_columns(values[:, 3:]))
    return np.concatenate((values[:, :3], rotation), axis=1)


def gripper_closed(
    raw: ArrayLike, *, closed: str, threshold: float | None, scale: float = 1.0
) -> Float64:
    """Gripper readings [T] -> float64[T] with 1 = closed.

    Args:
        raw: the recorded numbers.
        closed: "high" when large readings mean closed, "low" when small ones do.
        threshold: readings beyond it are 1, the others 0; None keeps a reading in 0..1 continuous.
        scale: factor of the readings, applied in the precision in which they were recorded.
    """
    values = (np.asarray(raw) * scale).astype(np.float64)
    if threshold is None:
        return values if closed == "high" else 1.0 - values
    beyond = values > threshold if closed == "high" else values < threshold
    return beyond.astype(np.float64)
