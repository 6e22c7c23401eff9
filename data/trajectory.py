"""The standard trajectory that every storage reader yields, and the reader's interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.faults import BadEpisodeError, FaultError, bad_episode
from data.poses import ACTION_WIDTH, ARM_WIDTH, gripper_closed, xyz_rot6d
from data.spec import Arm, Columns, DatasetSpec

Arrays = Mapping[str, NDArray[Any]]
Float64 = NDArray[np.float64]

STILLNESS_LAYOUT = "interleaved"


class Pictures(Protocol):
    """The pictures of one view in the order recorded; an object array of bytes is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any:
        """One picture: an encoded file's bytes, or uint8[H, W, 3] RGB."""
        ...

    def take(self, indices: NDArray[np.int64], /) -> Pictures:
        """The pictures at `indices`: what is cheap to hold is read now, videos are not."""
        ...


@dataclass(frozen=True)
class UnreadablePictures:
    """Stands for the pictures of a view that could not be read."""

    reason: str
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> bytes:
        """Always a ValueError that tells the reason."""
        raise ValueError(self.reason)

    def take(self, indices: NDArray[np.int64]) -> UnreadablePictures:
        """No more readable than the whole."""
        return UnreadablePictures(self.reason, len(indices))


@dataclass(frozen=True)
class Trajectory:
    """One episode of T frames. Pictures stay encoded until their sample is drawn."""

    dataset: str
    episode: str  # where it lies: file and number
    instruction: str
    poses: Float64  # [T, 20]; picture i + picture_offset of the row belongs to pose i
    images: tuple[Pictures, ...]  # per view
    clocks: Float64 | None = None  # [arms, T] s since the first reading; None: evenly spaced
    still_rows: Float64 | None = None  # [T, C] judged for stillness in place of `poses`
    span: tuple[int, int] | None = None  # samples start within these frames; None: all
    paraphrases: tuple[str, ...] = ()  # of the instruction


class Reader(Protocol):
    """A storage format, opened for one dataset row.

    A part is what is read at once (an RLDS shard, say); reading it twice gives the same
    trajectories in the same order. Everything random comes later.
    """

    spec: DatasetSpec
    episodes_per_part: tuple[int, ...]

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """The trajectories of one part, in the order stored.

        An episode that cannot be used is yielded as its error; what is raised ends the run.
        """
        ...


def standard_trajectory(
    raw: Arrays,
    spec: DatasetSpec,
    episode: str,
    *,
    instruction: str | bytes,
    images: tuple[Pictures, ...],
    span: tuple[int, int] | None = None,
    paraphrases: Mapping[str, tuple[str, ...]] | None = None,
) -> Trajectory:
    """Recorded arrays by key, each [T, ...], -> the standard trajectory.

    Args:
        raw: the arrays of `spec.state_keys`.
        spec: the dataset row.
        episode: file and number, for messages.
        instruction: as recorded; the row may cut it.
        images: the pictures of each view, at least T and at most T + picture_offset; encoded, or
            raw as uint8[n, H, W, 3].
        span: first frame and one past the last that may start a sample.
        paraphrases: of any instruction.

    Raises:
        BadEpisodeError: arrays of unequal length, a number that is not finite, a zero quaternion,
            an array of the wrong width, a clock that stands, or no instruction.
    """
    try:
        num_frames = _common_length(raw, spec, images)
        recorded = {key: _lagged(raw[key], spec.command_lag) for key in spec.state_keys}
        arms = np.zeros((num_frames, ACTION_WIDTH))
        # beside joints, arms only show whether anything moves
        layout = STILLNESS_LAYOUT if spec.joints else spec.rotation_layout
        for number, arm in enumerate(spec.arms):
            columns = slice(number * ARM_WIDTH, (number + 1) * ARM_WIDTH)
            arms[:, columns] = _arm_rows(recorded, arm, layout)
        poses = _joint_rows(recorded, spec.joints) if spec.joints else arms
        for rows in (arms, poses):
            _check_finite(rows)
        text = _instruction(instruction, spec)
        clocks = _clocks(raw, spec.arms)
    except (ValueError, LookupError) as error:
        raise bad_episode(spec.name, episode, error) from error
    return Trajectory(
        dataset=spec.name,
        episode=episode,
        instruction=text,
        poses=poses,
        images=tuple(_one_by_one(view) for view in images),
        clocks=clocks,
        still_rows=arms if spec.joints and spec.arms else None,
        span=span,
        paraphrases=(paraphrases or {}).get(text, ()),
    )


def _one_by_one(view: Pictures) -> Pictures:
    """A stack of raw pictures uint8[n, H, W, 3] as n pictures: numpy's `take` would flatten it."""
    if not isinstance(view, np.ndarray) or view.ndim == 1:
        return view
    pictures = np.empty(len(view), object)
    for place, picture in enumerate(view):
        pictures[place] = picture
    return pictures


def _common_length(raw: Arrays, spec: DatasetSpec, images: tuple[Pictures, ...]) -> int:
    lengths = {key: len(raw[key]) for key in spec.state_keys}
    num_frames = min(lengths.values())
    if num_frames == 0:
        raise FaultError("unequal_lengths", "no frames")
    pictures = {key: len(view) for key, view in zip(spec.views, images, strict=True)}
    allowed = range(num_frames, num_frames + spec.picture_offset + 1)
    if len(set(lengths.values())) != 1 or not set(pictures.values()) <= set(allowed):
        raise FaultError("unequal_lengths", f"arrays of unequal length: {pictures | lengths}")
    return num_frames


def _instruction(recorded: str | bytes, spec: DatasetSpec) -> str:
    text = recorded if spec.fixed_instruction is None else spec.fixed_instruction
    if not isinstance(text, str | bytes):
        where = spec.instruction_key or "the instruction"
        raise FaultError("malformed", f"{where} is a {type(text).__name__}, not a text")
    if isinstance(text, bytes):
        text = text.decode()
    if spec.instruction_end is not None:
        text = text.split(spec.instruction_end)[0]
    if not text.strip():
        raise FaultError("no_instruction", f"{spec.instruction_key or 'the instruction'} is empty")
    return text


def _lagged(rows: NDArray[Any], lag: int) -> NDArray[Any]:
    return rows[np.maximum(np.arange(len(rows)) - lag, 0)] if lag else rows


def _columns(raw: Arrays, columns: Columns) -> NDArray[Any]:
    rows = raw[columns.key]
    flat = rows.reshape(len(rows), int(np.prod(rows.shape[1:])))
    if flat.shape[1] < columns.end:
        raise ValueError(f"{columns.key} has {flat.shape[1]} columns, {columns.end} are needed")
    return flat[:, columns.first : columns.end]


def _arm_rows(raw: Arrays, arm: Arm, rotation_layout: str) -> Float64:
    pose = np.concatenate([_columns(raw, columns) for columns in arm.pose], axis=1)
    _check_finite(pose)
    readings = raw[arm.gripper.key]
    readings = readings.reshape(len(readings), int(np.prod(readings.shape[1:])))
    gripper = gripper_closed(
        readings[:, arm.gripper.column],
        closed=arm.gripper.closed,
        threshold=arm.gripper.threshold,
        scale=arm.gripper.scale,
    )
    rows = xyz_rot6d(pose, arm.pose_encoding, rotation_layout)
    return np.concatenate((rows, gripper[:, None]), axis=1)


def _joint_rows(raw: Arrays, joints: tuple[Columns, ...]) -> Float64:
    found = np.concatenate([_columns(raw, columns) for columns in joints], axis=1)
    rows = np.zeros((len(found), ACTION_WIDTH))
    rows[:, : found.shape[1]] = found
    return rows


def _check_finite(rows: NDArray[Any]) -> None:
    if not np.isfinite(rows).all():
        frame = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise FaultError("not_finite", f"frame {frame} has a number that is not finite")


def _clocks(raw: Arrays, arms: tuple[Arm, ...]) -> Float64 | None:
    keys = [arm.clock_key for arm in arms if arm.clock_key is not None]
    if not keys:
        return None
    clocks = np.stack([np.asarray(raw[key], np.float64).reshape(-1) for key in keys])
    if not np.isfinite(clocks).all():
        raise FaultError("clock", f"a time in {', '.join(keys)} is not finite")
    standing = np.flatnonzero((np.diff(clocks, axis=1) <= 0).any(axis=0))
    if len(standing):
        raise FaultError(
            "clock", f"{', '.join(keys)}: the clock stands or runs back at {standing[0] + 1}"
        )
    return clocks - clocks[:, :1].min()
