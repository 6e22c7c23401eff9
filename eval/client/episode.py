"""Drives one environment: builds requests from its observations, and its actions from chunks.

One client for all benchmarks; `ClientProfile` holds what differs between them.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.rotations import (
    ROT6D_LAYOUTS,
    euler_xyz_to_matrix,
    matrix_to_axis_angle,
    matrix_to_euler_xyz,
    matrix_to_quat_xyzw,
    quat_wxyz_to_xyzw,
    quat_xyzw_to_matrix,
    quat_xyzw_to_wxyz,
)
from eval.tasks.profiles import (
    ARM_WIDTH,
    ArmState,
    ClientProfile,
    GripperRule,
    JointForm,
    Slot,
)

Raw = Mapping[str, Any]


class ObservationError(ValueError):
    """An environment's observation lacks something that the profile asks for."""


class EpisodeClient:
    """Queue, proprio and instruction of one environment, as its profile says.

    One turn: `request` where `needs_chunk`, answer it with `put`, then `act` until the queue is
    empty. A chunk that is refused leaves everything as it was, so the same request can be made
    again.

    Args:
        profile: row of the task table.
    """

    def __init__(self, profile: ClientProfile) -> None:
        self._profile = profile
        self._queue: deque[NDArray[np.float32]] = deque()
        self._proprio: NDArray[np.float64] | None = None
        self._base: NDArray[np.float32] | None = None
        self._last: NDArray[np.float32] | None = None
        self._instruction = ""

    def reset(self) -> None:
        """Starts an episode; what the profile keeps over a reset stays."""
        self._queue.clear()
        self._base = self._last = None
        self._instruction = ""
        if not self._profile.keeps_proprio:
            self._proprio = None

    def instruct(self, text: str) -> None:
        """Sets the instruction of the next query."""
        changed = bool(self._instruction) and text != self._instruction
        if changed and self._profile.clears_on_instruction:
            self._queue.clear()
        self._instruction = text

    @property
    def needs_chunk(self) -> bool:
        """True if the policy must be asked before `act` can be called again."""
        return not self._queue

    @property
    def queued(self) -> int:
        """Actions left of the last chunk."""
        return len(self._queue)

    @property
    def proprio(self) -> NDArray[np.float64] | None:
        """Proprio [D] that the client keeps between queries; None before the first."""
        return None if self._proprio is None else self._proprio.copy()

    @property
    def xyz_base(self) -> NDArray[np.float32] | None:
        """Position (m) that the next chunk's positions are offsets from, where they are."""
        return None if self._base is None else self._base.copy()

    def request(self, raw: Raw) -> dict[str, Any]:
        """Returns the `Observation` that asks for the next chunk.

        Args:
            raw: the environment's observation, keys as the profile names them.

        Raises:
            ValueError: actions are still queued.
            ObservationError: something is missing in `raw`.
        """
        if self._queue:
            raise ValueError(f"{len(self._queue)} rows of the last chunk are still to be done")
        images = view_images(self._profile, raw)
        state = self._state(raw)
        if self._profile.xyz_base is not None and self._base is None:
            place = position(self._profile.xyz_base, self._profile.xyz_base_frame, raw)
            self._base = place.astype(np.float32)
        self._proprio = state
        return {
            "images": images,
            "instruction": self._instruction,
            "proprio": state.astype(np.float32),
            "domain_id": self._profile.domain_id,
        }

    def put(self, chunk: ArrayLike) -> None:
        """Queues the rows of `chunk` [T, D] that are to be carried out.

        Raises:
            ValueError: rows are still queued, nothing was requested, the chunk is too short or too
                narrow, or it is not finite.
        """
        profile, rows = self._profile, np.asarray(chunk, np.float32)
        if self._queue:
            raise ValueError(f"{len(self._queue)} rows of the last chunk are still to be done")
        if self._proprio is None:
            raise ValueError("a chunk came before any request")
        needed = profile.rows_needed
        if rows.ndim != 2 or len(rows) < needed or rows.shape[1] != profile.action_width:
            raise ValueError(
                f"chunk {rows.shape} must be [T, {profile.action_width}] with T at least {needed} "
                f"(executed {profile.executed}, stride {profile.stride}; columns of the task's row)"
            )
        if not np.isfinite(rows).all():
            raise ValueError("the policy returned an action that is not finite")
        kept = rows[: needed : profile.stride].copy()
        if self._base is not None:
            kept[:, :3] += self._base
        self._queue.extend(kept)
        if profile.feedback == "chunk_end":
            self._proprio[: profile.feedback_channels] = rows[-1, : profile.feedback_channels]

    def take(self) -> NDArray[np.float32]:
        """Returns the next action row [D], with an absolute position.

        Raises:
            IndexError: nothing is queued.
        """
        row = self._queue.popleft()
        self._last = row
        if self._base is not None:
            self._base = row[:3].copy()
        if self._profile.feedback == "executed" and self._proprio is not None:
            channels = self._profile.feedback_channels
            self._proprio[:channels] = row[:channels]
        return row

    def act(self) -> NDArray[np.floating]:
        """Returns the next action in the environment's form and dtype."""
        return row_to_action(self._profile, self.take())

    def _state(self, raw: Raw) -> NDArray[np.float64]:
        again = self._profile.feedback in ("measured", "commanded_pose")
        if self._proprio is not None and not again:
            return self._proprio
        state = proprio(self._profile, raw)
        if self._profile.shift_in_place:
            shift_in_place(self._profile, raw)
        if self._profile.feedback == "commanded_pose" and self._last is not None:
            for arm, pose in enumerate(commanded_poses(self._profile, self._last)):
                state[arm * ARM_WIDTH : arm * ARM_WIDTH + 9] = pose
        return state


# --- observation: what the environment gives -> images and proprio


def _identity(_: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.eye(3)


def _wxyz_to_matrix(quat: NDArray[np.float64]) -> NDArray[np.float64]:
    return quat_xyzw_to_matrix(quat_wxyz_to_xyzw(quat))


_TO_MATRIX: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "matrix": lambda numbers: numbers.reshape(3, 3),
    "euler_xyz": euler_xyz_to_matrix,
    "quat_xyzw": quat_xyzw_to_matrix,
    "quat_wxyz": _wxyz_to_matrix,
    # The simulator gives w, x, y, z, which the training data read as x, y, z, w.
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


def view_images(profile: ClientProfile, raw: Raw) -> list[NDArray[np.uint8]]:
    """Returns the views uint8[H, W, 3] in the order of the model's slots.

    Raises:
        ObservationError: one is missing, or has another form.
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
    """Returns the robot's joints, or its state [D] by `profile.state`; zeros for absent arms.

    Raises:
        ObservationError: a key is missing, or a number is not finite.
    """
    made = np.zeros(profile.action_width)
    if isinstance(profile.action, JointForm):
        made[: profile.action.width] = _numbers(raw, profile.action.state)
    for arm, state in enumerate(profile.state):
        made[arm * ARM_WIDTH : (arm + 1) * ARM_WIDTH] = _arm(profile, state, raw)
    return made


def shift_in_place(profile: ClientProfile, raw: Raw) -> None:
    """Subtracts the robot's place from the caller's own arrays, as one original client does."""
    for state in profile.state:
        slot = state.position
        _array(raw, slot.source)[slot.first : slot.end] -= state.shift


def position(slot: Slot, frame: str, raw: Raw) -> NDArray[np.float64]:
    """Returns xyz (m), in the frame of the pose `frame` (xyz, quaternion wxyz) if one is named."""
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


# --- action: a row of the chunk -> what the environment takes


def _axis_angle_float32(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts as robosuite does: a quaternion in float32, so that tiny turns vanish.

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
    """Returns the numbers that `rule` has for a probability of closed."""
    real = np.float32 if rule.float32 else np.float64
    p, threshold = real(probability), real(rule.threshold)
    closed = p >= threshold if rule.closed_at_threshold else p > threshold
    return rule.closed if closed else rule.open


def row_to_action(profile: ClientProfile, row: ArrayLike) -> NDArray[np.floating]:
    """Converts an action row [D] to the environment's action, see `ActionForm` and `JointForm`."""
    form, values = profile.action, np.asarray(row, np.float64)
    if isinstance(form, JointForm):
        return values[: form.width].astype(form.dtype)
    parts: list[ArrayLike] = []
    for arm in range(form.arms):
        one = values[arm * ARM_WIDTH : (arm + 1) * ARM_WIDTH]
        turn = _FROM_MATRIX[form.rotation_form](ROT6D_LAYOUTS[profile.rotation].to_matrix(one[3:9]))
        if any(form.euler_offset):
            turn = turn + np.asarray(form.euler_offset)
        parts += [one[:3] + np.asarray(form.shift), turn, gripper_command(form.gripper, one[9])]
    return np.concatenate(parts).astype(form.dtype)


def commanded_poses(profile: ClientProfile, row: ArrayLike) -> list[NDArray[np.float64]]:
    """Returns xyz and orthonormal 6-D rotation [9] of each arm, as the environment gets them."""
    layout, values = ROT6D_LAYOUTS[profile.rotation], np.asarray(row, np.float64)
    poses = []
    for arm in range(profile.action.width // ARM_WIDTH):
        one = values[arm * ARM_WIDTH : arm * ARM_WIDTH + 9]
        poses.append(np.concatenate((one[:3], layout.from_matrix(layout.to_matrix(one[3:])))))
    return poses
