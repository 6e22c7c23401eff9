"""From an environment's observation to the policy's: pictures, proprio, base position."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .rotations import ROT6D_LAYOUTS, euler_xyz_to_matrix, quat_wxyz_to_xyzw, quat_xyzw_to_matrix
from .tasks.profiles import ARM_WIDTH, ArmState, ClientProfile, Slot

Raw = Mapping[str, Any]


class ObservationError(ValueError):
    """An environment's observation lacks something that the profile asks for."""


def _identity(_: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.eye(3)


def _wxyz_to_matrix(quat: NDArray[np.float64]) -> NDArray[np.float64]:
    return quat_xyzw_to_matrix(quat_wxyz_to_xyzw(quat))


_TO_MATRIX: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "matrix": lambda numbers: numbers.reshape(3, 3),
    "euler_xyz": euler_xyz_to_matrix,
    "quat_xyzw": quat_xyzw_to_matrix,
    "quat_wxyz": _wxyz_to_matrix,
    # The simulator says w, x, y, z and the training data were read as x, y, z, w.
    "quat_wxyz_as_xyzw": quat_xyzw_to_matrix,
    "identity": _identity,
}

_GRIPPERS: dict[str, Callable[[float], float]] = {
    "zero": lambda _: 0.0,
    "raw": lambda value: value,
    "above_zero": lambda value: float(value > 0),
    "below_zero": lambda value: float(value < 0),
    "one_minus_twice": lambda value: 1.0 - 2.0 * value,
}


def pictures(profile: ClientProfile, raw: Raw) -> list[NDArray[np.uint8]]:
    """The views uint8[H, W, 3] in the order of the model's slots.

    Raises:
        ObservationError: one is missing, or is no picture of that form.
    """
    made = []
    for view in profile.views:
        image = _array(raw, view.source)
        if view.index is not None:
            image = image[view.index]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ObservationError(
                f"view {view.name!r} from {view.source!r} is {image.dtype}{list(image.shape)}; "
                "uint8[H, W, 3] is needed"
            )
        made.append(view.turned(image))
    return made


def proprio(profile: ClientProfile, raw: Raw) -> NDArray[np.float64]:
    """What `profile.state` says of the robot now, [D]; zeros for absent arms.

    Raises:
        ObservationError: a key is missing, or a number is not finite.
    """
    made = np.zeros(profile.action_width)
    for arm, state in enumerate(profile.state):
        made[arm * ARM_WIDTH : (arm + 1) * ARM_WIDTH] = _arm(profile, state, raw)
    return made


def shift_in_place(profile: ClientProfile, raw: Raw) -> None:
    """Subtracts the robot's place from the caller's own arrays, as one original client does."""
    for state in profile.state:
        slot = state.position
        _array(raw, slot.source)[slot.first : slot.end] -= state.shift


def position(slot: Slot, frame: str, raw: Raw) -> NDArray[np.float64]:
    """Xyz (m), told in the frame of the pose `frame` (xyz, quaternion wxyz) where one is named."""
    xyz = _numbers(raw, slot)
    if not frame:
        return xyz
    pose = _numbers(raw, Slot(frame, 0, 7))
    return _wxyz_to_matrix(pose[3:]).T @ (xyz - pose[:3])


def _arm(profile: ClientProfile, state: ArmState, raw: Raw) -> NDArray[np.float64]:
    xyz = position(state.position, state.relative_to, raw) - np.asarray(state.shift)
    turn = np.zeros(0) if state.rotation is None else _numbers(raw, state.rotation)
    grip = 0.0 if state.gripper is None else float(_numbers(raw, state.gripper)[0])
    matrix = _TO_MATRIX[state.rotation_form](turn)
    rot6d = ROT6D_LAYOUTS[profile.rotation].from_matrix(matrix)
    return np.concatenate((xyz, rot6d, [_GRIPPERS[state.gripper_form](grip)]))


def _numbers(raw: Raw, slot: Slot) -> NDArray[np.float64]:
    values = np.asarray(_array(raw, slot.source), np.float64).reshape(-1)
    if len(values) < slot.end:
        raise ObservationError(
            f"{slot.source!r} has {len(values)} numbers; {slot.first}..{slot.end - 1} are needed"
        )
    if not np.isfinite(values[slot.first : slot.end]).all():
        raise ObservationError(f"{slot.source!r} has a number that is not finite")
    return values[slot.first : slot.end]


def _array(raw: Raw, name: str) -> Any:
    if name not in raw:
        raise ObservationError(
            f"the observation has no {name!r}; it has {', '.join(sorted(raw)) or 'nothing'}"
        )
    return np.asarray(raw[name])
