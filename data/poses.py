"""Recorded state of one arm -> ten EE6D numbers: xyz (m), 6-D rotation, gripper (1 = closed).

Rotations are handled as the first two columns of their matrix, [..., 3, 2]; the order of the six
numbers, interleaved or contiguous, is in the function's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.faults import FaultError

Float64 = NDArray[np.float64]

ARM_WIDTH = 10
ACTION_WIDTH = 2 * ARM_WIDTH  # left arm, then right arm
# of lengths and of the cosine between columns; rounding to float16 costs 1e-3 at most
TOLERANCE = 1e-3


def columns_from_quat_xyzw(quat: ArrayLike) -> Float64:
    """First two matrix columns of quaternions [..., 4] of any length, order x, y, z, w.

    Raises:
        FaultError: a quaternion is shorter than `TOLERANCE`.
    """
    q = np.asarray(quat, np.float64)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if np.any(norm < TOLERANCE):
        frame = int(np.argmin(norm.reshape(-1)))
        raise FaultError("zero_rotation", f"the quaternion of frame {frame} has length zero")
    x, y, z, w = np.moveaxis(q / norm, -1, 0)
    return _stack_columns(
        (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)),
        (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)),
    )


def columns_from_euler_xyz(angles: ArrayLike) -> Float64:
    """First two matrix columns of angles [..., 3] (rad) about the fixed axes x, then y, then z."""
    a, b, c = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    sa, ca, sb, cb, sc, cc = np.sin(a), np.cos(a), np.sin(b), np.cos(b), np.sin(c), np.cos(c)
    return _stack_columns(
        (cc * cb, sc * cb, -sb),
        (cc * sb * sa - sc * ca, sc * sb * sa + cc * ca, cb * sa),
    )


def columns_from_axis_angle(vectors: ArrayLike) -> Float64:
    """First two matrix columns of rotation vectors [..., 3]: unit axis times angle (rad)."""
    v = np.asarray(vectors, np.float64)
    angle = np.linalg.norm(v, axis=-1, keepdims=True)
    # np.sinc(x) is sin(pi x) / (pi x): the axis times sin(angle / 2), exact at angle 0
    imaginary = v * np.sinc(angle / (2 * np.pi)) / 2
    return columns_from_quat_xyzw(np.concatenate((imaginary, np.cos(angle / 2)), axis=-1))


def columns_to_rot6d_interleaved(columns: Float64) -> Float64:
    """Rows of the two columns, one after another: [..., 3, 2] -> [..., 6]."""
    return columns.reshape(*columns.shape[:-2], 6)


def columns_to_rot6d_contiguous(columns: Float64) -> Float64:
    """First column, then the second: [..., 3, 2] -> [..., 6]."""
    return columns.swapaxes(-1, -2).reshape(*columns.shape[:-2], 6)


ROT6D_LAYOUTS: dict[str, Callable[[Float64], Float64]] = {
    "interleaved": columns_to_rot6d_interleaved,
    "contiguous": columns_to_rot6d_contiguous,
}


_COLUMNS_OF_ROT6D: dict[str, Callable[[Float64], Float64]] = {
    "interleaved": lambda rot6d: rot6d.reshape(*rot6d.shape[:-1], 3, 2),
    "contiguous": lambda rot6d: rot6d.reshape(*rot6d.shape[:-1], 2, 3).swapaxes(-1, -2),
}


def check_rotations(rot6d: Float64, layouts: tuple[str, ...]) -> None:
    """Checks that 6-D rotations [T, 6] are rotations in one of `layouts`.

    The two columns must be one long and at right angles, within `TOLERANCE`.

    Raises:
        FaultError: `zero_rotation` or `not_orthonormal`, with the first such frame.
    """
    errors = np.min([_rot6d_error(rot6d, layout) for layout in layouts], axis=0)
    bad = np.flatnonzero(errors > TOLERANCE)
    if not len(bad):
        return
    frame = int(bad[0])
    numbers = rot6d[frame]
    if np.abs(numbers).max() < TOLERANCE:
        raise FaultError("zero_rotation", f"the rotation of frame {frame} has length zero")
    others = [name for name in ROT6D_LAYOUTS if _rot6d_error(numbers[None], name) <= TOLERANCE]
    remedy = f"; it is one in layout {others[0]} (rotation_layout of the row)" if others else ""
    raise FaultError(
        "not_orthonormal",
        f"the rotation of frame {frame}, {numbers.round(4).tolist()}, is none in layout "
        f"{' or '.join(layouts)}: its columns must be one long and at right angles, within "
        f"{TOLERANCE}{remedy}",
    )


def _rot6d_error(rot6d: Float64, layout: str) -> Float64:
    """Distance of the columns from length one and from right angles: [T, 6] -> [T]."""
    first, second = np.moveaxis(_COLUMNS_OF_ROT6D[layout](rot6d), -1, 0)  # [T, 3] each
    lengths = np.linalg.norm((first, second), axis=-1)  # [2, T]
    slant = np.abs((first * second).sum(axis=-1))
    return np.maximum(np.abs(lengths - 1).max(axis=0), slant)


def _stack_columns(first: tuple[Float64, ...], second: tuple[Float64, ...]) -> Float64:
    return np.stack((np.stack(first, axis=-1), np.stack(second, axis=-1)), axis=-1)


@dataclass(frozen=True)
class PoseEncoding:
    """Form of a recorded pose: xyz first, then `width` - 3 numbers of rotation."""

    width: int
    to_columns: Callable[[ArrayLike], Float64] | None  # None: 6-D already, and copied
    layouts: tuple[str, ...] = ()  # in which copied rotations may be; empty: the row's own


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

    Rotations that are 6-D already are copied, and may be in one of `others` as well.

    Raises:
        FaultError: a rotation is zero, or is copied and not orthonormal.
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
