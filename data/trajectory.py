"""The standard trajectory that every storage reader yields, and the reader's interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.poses import ACTION_WIDTH, ARM_WIDTH, gripper_closed, xyz_rot6d
from data.spec import Arm, DatasetSpec

Arrays = Mapping[str, NDArray[Any]]


class BadEpisodeError(ValueError):
    """An episode that cannot be used, named with its dataset and the reason."""

    def __init__(self, dataset: str, episode: str, reason: str) -> None:
        super().__init__(f"dataset {dataset!r}, episode {episode}: {reason}")


@dataclass(frozen=True)
class Trajectory:
    """One episode of T frames. Images stay encoded until their sample is drawn."""

    dataset: str
    episode: str  # where it lies: file and number
    instruction: str
    poses: NDArray[np.float64]  # [T, 20] EE6D, row i belongs to image i
    images: tuple[NDArray[np.object_], ...]  # per view [T] encoded bytes


class Reader(Protocol):
    """A storage format, opened for one dataset row.

    A part is what is read at once (an RLDS shard, say); reading it twice gives the same
    trajectories in the same order. Everything random comes later.
    """

    spec: DatasetSpec
    episodes_per_part: tuple[int, ...]

    def read(self, part: int) -> Iterator[Trajectory]:
        """The trajectories of one part, in the order stored."""
        ...


def standard_trajectory(raw: Arrays, spec: DatasetSpec, episode: str) -> Trajectory:
    """Recorded arrays by dotted key, each [T, ...], -> the standard trajectory.

    Raises:
        BadEpisodeError: arrays of unequal length, a number that is not finite, a zero quaternion,
            an array of the wrong width, or no instruction.
    """
    lengths = {key: len(raw[key]) for key in spec.keys}
    if len(set(lengths.values())) != 1:
        raise BadEpisodeError(spec.name, episode, f"arrays of unequal length: {lengths}")
    num_frames = lengths[spec.instruction_key]
    instruction = raw[spec.instruction_key][0].decode() if num_frames else ""
    if not instruction.strip():
        raise BadEpisodeError(spec.name, episode, f"{spec.instruction_key} is empty")
    poses = np.zeros((num_frames, ACTION_WIDTH))
    for number, arm in enumerate(spec.arms):
        columns = slice(number * ARM_WIDTH, (number + 1) * ARM_WIDTH)
        try:
            poses[:, columns] = _arm_rows(raw, arm, spec.rotation_layout)
        except (ValueError, IndexError) as error:
            raise BadEpisodeError(spec.name, episode, str(error)) from error
    if not np.isfinite(poses).all():
        frame = int(np.argmin(np.isfinite(poses).all(axis=1)))
        raise BadEpisodeError(spec.name, episode, f"frame {frame} has a number that is not finite")
    images = tuple(raw[key] for key in spec.views)
    return Trajectory(spec.name, episode, instruction, poses, images)


def _arm_rows(raw: Arrays, arm: Arm, rotation_layout: str) -> NDArray[np.float64]:
    pose = raw[arm.pose_key][:, slice(*arm.pose_columns)]
    readings = raw[arm.gripper.key]
    if readings.ndim == 1:
        readings = readings[:, None]
    gripper = gripper_closed(
        readings[:, arm.gripper.column], closed=arm.gripper.closed, threshold=arm.gripper.threshold
    )
    rows = xyz_rot6d(pose, arm.pose_encoding, rotation_layout)
    return np.concatenate((rows, gripper[:, None]), axis=1)
