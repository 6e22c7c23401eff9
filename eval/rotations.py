"""Conversions between the rotations of simulators and policies, in float64.

All go through the 3x3 matrix R, whose columns are the rotated axes. The 6-D form holds its first
two columns, in one of two layouts, which is in the function's name:

    interleaved  [R00, R01, R10, R11, R20, R21]   everything but LIBERO
    contiguous   [R00, R10, R20, R01, R11, R21]   LIBERO

All functions take and return arrays with any leading shape, written [...].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A vector below this length has no direction.
TOO_SHORT = 1e-8

_INTERLEAVED = [0, 2, 4, 1, 3, 5]


def matrix_to_rot6d_contiguous(matrix: ArrayLike) -> NDArray[np.float64]:
    """R [..., 3, 3] -> [..., 6]: column 0, then column 1."""
    m = np.asarray(matrix, np.float64)
    return np.concatenate((m[..., :, 0], m[..., :, 1]), axis=-1)


def matrix_to_rot6d_interleaved(matrix: ArrayLike) -> NDArray[np.float64]:
    """R [..., 3, 3] -> [..., 6]: the first two columns, read row by row."""
    m = np.asarray(matrix, np.float64)
    return m[..., :, :2].reshape((*m.shape[:-2], 6))  # [..., 3, 2] -> [..., 6]


def rot6d_contiguous_to_matrix(rot6d: ArrayLike) -> NDArray[np.float64]:
    """[..., 6] -> R [..., 3, 3] by Gram-Schmidt: the first vector keeps its direction.

    Raises:
        ValueError: a vector is shorter than 1e-8, or the two are parallel (an unused arm is zeros).
    """
    v = np.asarray(rot6d, np.float64)
    first = _unit(v[..., 0:3])
    second = v[..., 3:6]
    second = _unit(second - np.sum(first * second, axis=-1, keepdims=True) * first)
    return np.stack((first, second, np.cross(first, second)), axis=-1)


def rot6d_interleaved_to_matrix(rot6d: ArrayLike) -> NDArray[np.float64]:
    """[..., 6] -> R [..., 3, 3]; as `rot6d_contiguous_to_matrix`, for the other layout."""
    return rot6d_contiguous_to_matrix(np.asarray(rot6d, np.float64)[..., _INTERLEAVED])


@dataclass(frozen=True)
class Rot6dLayout:
    """The two directions of one 6-D layout."""

    from_matrix: Callable[[ArrayLike], NDArray[np.float64]]
    to_matrix: Callable[[ArrayLike], NDArray[np.float64]]


ROT6D_LAYOUTS: dict[str, Rot6dLayout] = {
    "contiguous": Rot6dLayout(matrix_to_rot6d_contiguous, rot6d_contiguous_to_matrix),
    "interleaved": Rot6dLayout(matrix_to_rot6d_interleaved, rot6d_interleaved_to_matrix),
}


def quat_xyzw_to_matrix(quat: ArrayLike) -> NDArray[np.float64]:
    """Quaternion [..., 4] of any length -> R [..., 3, 3]; q and -q give the same.

    Raises:
        ValueError: a quaternion is shorter than 1e-8.
    """
    x, y, z, w = np.moveaxis(_unit(np.asarray(quat, np.float64)), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quat_xyzw(matrix: ArrayLike) -> NDArray[np.float64]:
    """R [..., 3, 3] -> unit quaternion [..., 4] with w >= 0.

    Half turns have w = 0, where the sign of x, y, z is arbitrary: both mean the same rotation.
    """
    m = np.asarray(matrix, np.float64)
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Four products q_i * q; the one of the largest q_i has no cancellation.
    products = np.empty((*m.shape[:-2], 4, 4))
    for i, (j, k) in enumerate(((1, 2), (2, 0), (0, 1))):
        products[..., i, i] = 1 + 2 * m[..., i, i] - trace
        products[..., i, j] = products[..., j, i] = m[..., i, j] + m[..., j, i]
        products[..., i, 3] = products[..., 3, i] = m[..., k, j] - m[..., j, k]
    products[..., 3, 3] = 1 + trace
    largest = np.argmax(np.diagonal(products, axis1=-2, axis2=-1), axis=-1)
    quat = np.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
    quat = quat / np.linalg.norm(quat, axis=-1, keepdims=True)
    return np.where(quat[..., 3:] < 0, -quat, quat)


def quat_wxyz_to_xyzw(quat: ArrayLike) -> NDArray[np.float64]:
    """[..., (w, x, y, z)] -> [..., (x, y, z, w)]."""
    return np.asarray(quat, np.float64)[..., [1, 2, 3, 0]]


def quat_xyzw_to_wxyz(quat: ArrayLike) -> NDArray[np.float64]:
    """[..., (x, y, z, w)] -> [..., (w, x, y, z)]."""
    return np.asarray(quat, np.float64)[..., [3, 0, 1, 2]]


def euler_xyz_to_matrix(angles: ArrayLike) -> NDArray[np.float64]:
    """Turns [..., 3] (rad) about the fixed axes x, then y, then z -> R [..., 3, 3]."""
    a, b, c = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    sa, ca, sb, cb, sc, cc = np.sin(a), np.cos(a), np.sin(b), np.cos(b), np.sin(c), np.cos(c)
    rows = (
        (cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa),
        (sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa),
        (-sb, cb * sa, cb * ca),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_euler_xyz(matrix: ArrayLike) -> NDArray[np.float64]:
    """R [..., 3, 3] -> turns [..., 3] (rad) about the fixed axes x, y, z; the second in +-pi/2."""
    m = np.asarray(matrix, np.float64)
    return np.stack(
        (
            np.arctan2(m[..., 2, 1], m[..., 2, 2]),
            np.arcsin(np.clip(-m[..., 2, 0], -1.0, 1.0)),
            np.arctan2(m[..., 1, 0], m[..., 0, 0]),
        ),
        axis=-1,
    )


def axis_angle_to_matrix(vectors: ArrayLike) -> NDArray[np.float64]:
    """Rotation vectors [..., 3] (unit axis times angle, rad) -> R [..., 3, 3]."""
    v = np.asarray(vectors, np.float64)
    angle = np.linalg.norm(v, axis=-1, keepdims=True)
    # np.sinc(x) is sin(pi x) / (pi x): it keeps sin(angle / 2) / angle exact at angle 0.
    imaginary = v * np.sinc(angle / (2 * np.pi)) / 2
    return quat_xyzw_to_matrix(np.concatenate((imaginary, np.cos(angle / 2)), axis=-1))


def matrix_to_axis_angle(matrix: ArrayLike) -> NDArray[np.float64]:
    """R [..., 3, 3] -> rotation vectors [..., 3] of angles in [0, pi], as robosuite has them."""
    quat = matrix_to_quat_xyzw(matrix)
    sine = np.linalg.norm(quat[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quat[..., 3:])
    # angle / sin(angle / 2) tends to 2 as the rotation vanishes.
    scale = np.where(sine > TOO_SHORT, angle / np.maximum(sine, TOO_SHORT), 2.0)
    return quat[..., :3] * scale


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.all(length > TOO_SHORT):
        raise ValueError(
            f"no rotation in a vector of length {np.min(length):.3g} (needs more than {TOO_SHORT})"
            "; the channels of an unused arm are zeros and must not be decoded"
        )
    return vectors / length
