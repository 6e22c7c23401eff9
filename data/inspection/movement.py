"""How far a robot moves between frames, in steps that a camera should see."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.inspection import geometry
from data.inspection.channels import channel_names
from data.inspection.geometry import GRIPPER
from data.spec import DatasetSpec
from data.trajectory import Trajectory

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

# one visible step
STEP_M = 0.005
STEP_RAD = math.radians(3)
STEP_JOINT = 0.05  # of the range of the joint in the episode, since its unit is not known ...
LEAST_RANGE = (
    0.3  # ... where it moves at all: 17 degrees, more than the noise of a servo in degrees
)

STANDS = 1e-3  # standard deviation of a joint that stands
LEVER_M = 0.15  # from the wrist to what a camera sees turning


class Movement(NamedTuple):
    """Where the robot is in every frame of an episode.

    Attributes:
        hands: [arms, T, 10]; no arms where the row knows joints alone.
        rotations: [arms, T, 3, 3].
        joints: [T, C]; None where the row has poses.
    """

    hands: Float64
    rotations: Float64
    joints: Float64 | None

    def visible(self, frames: Int64) -> Float64:
        """Visible steps from each of `frames` to the next: [2, n - 1].

        Row 0 is for the main view, which sees all arms; row 1 for the others, which may see one arm
        alone, so it counts what all arms do, or most joints.
        """
        one, other = frames[:-1], frames[1:]
        if len(self.hands):
            way = np.linalg.norm(self.hands[:, other, :3] - self.hands[:, one, :3], axis=-1)
            turn = geometry.angles(self.rotations[:, other], self.rotations[:, one])
            steps = np.maximum(way / STEP_M, turn / STEP_RAD)  # [arms, n - 1]
            return np.stack((steps.max(axis=0), steps.min(axis=0)))
        assert self.joints is not None, "a row has arms or joints"
        span = np.ptp(self.joints, axis=0)
        step = np.where(span >= LEAST_RANGE, STEP_JOINT * span, np.inf)
        steps = np.abs(self.joints[other] - self.joints[one]) / step
        return np.stack((steps.max(axis=1), np.median(steps, axis=1)))

    def speeds(self, stride: int) -> Float64:
        """How fast all of it moves, from each frame to that `stride` later: [T - stride]."""
        if self.joints is None:
            lever = np.concatenate((np.ones(3), np.full(GRIPPER - 3, LEVER_M)))
            rows = np.concatenate(lever * self.hands[..., :GRIPPER], axis=1)
        else:
            span = self.joints.std(axis=0)
            # what hardly moves in the episode is noise, not movement
            rows = self.joints[:, span > STANDS] / span[span > STANDS]
        return np.linalg.norm(rows[stride:] - rows[:-stride], axis=1)


def movement(trajectory: Trajectory, spec: DatasetSpec) -> Movement:
    """The movement of an episode of the row."""
    hands = geometry.hand_rows(trajectory, spec)
    rotations = geometry.matrices(geometry.rotation_columns(hands, spec))
    width = len(channel_names(spec))
    return Movement(hands, rotations, trajectory.poses[:, :width] if spec.joints else None)
