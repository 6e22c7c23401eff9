import dataclasses

import numpy as np
import pytest

from data.datasets import dataset
from data.poses import gripper_closed, xyz_rot6d
from data.spec import Arm, Gripper
from data.trajectory import BadEpisodeError, standard_trajectory

ROW = dataset("fractal20220817_data")


def recording(**changes):
    raw = {
        "observation.image": np.array([b"a", b"b"], object),
        "observation.natural_language_instruction": np.array([b"pick apple"] * 2, object),
        # quaternion of a quarter turn about z, not normalised
        "observation.base_pose_tool_reached": np.array([[1, 2, 3, 0, 0, 1, 1]] * 2, np.float32),
        "observation.gripper_closed": np.array([[0.0], [1.0]], np.float32),
    }
    return raw | {f"observation.{key}": value for key, value in changes.items()}


def test_one_arm_fills_the_first_ten_numbers_and_the_rest_are_zeros():
    trajectory = standard_trajectory(recording(), ROW, "e")
    expected = np.zeros((2, 20))
    expected[:, :9] = [1, 2, 3, 0, -1, 1, 0, 0, 0]
    expected[:, 9] = [0, 1]
    np.testing.assert_allclose(trajectory.poses, expected, atol=1e-15)
    assert trajectory.instruction == "pick apple"
    assert trajectory.images[0].tolist() == [b"a", b"b"]


def test_two_arms_are_left_then_right():
    def arm(first):
        gripper = Gripper(key="joints", column=first // 6, closed="high", threshold=0.5)
        return Arm(
            pose_key="poses",
            pose_columns=(first, first + 6),
            pose_encoding="xyz_euler_xyz",
            gripper=gripper,
        )

    row = dataclasses.replace(ROW, arms=(arm(0), arm(6)))
    poses = np.zeros((2, 12))
    poses[:, :3], poses[:, 6:9] = [1, 2, 3], [4, 5, 6]
    raw = recording() | {"poses": poses, "joints": np.array([[0.2, 0.7]] * 2)}
    row0 = standard_trajectory(raw, row, "e").poses[0]
    identity = [1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(row0, [1, 2, 3, *identity, 0, 4, 5, 6, *identity, 1], atol=1e-15)


def test_the_row_decides_the_layout():
    turn = np.array([[0, 0, 0, 0, 0, np.pi / 2]])
    for layout, rotation in (
        ("interleaved", [0, -1, 1, 0, 0, 0]),
        ("contiguous", [0, 1, 0, -1, 0, 0]),
    ):
        pose = xyz_rot6d(turn, "xyz_axis_angle", layout)
        np.testing.assert_allclose(pose[0, 3:], rotation, atol=1e-15)


@pytest.mark.parametrize(
    ("closed", "threshold", "expected"),
    [
        ("high", None, [0.0, 0.25, 1.0]),
        ("low", None, [1.0, 0.75, 0.0]),
        ("high", 0.25, [0.0, 0.0, 1.0]),
        ("low", 0.25, [1.0, 0.0, 0.0]),
    ],
)
def test_gripper_rules(closed, threshold, expected):
    readings = np.array([0.0, 0.25, 1.0], np.float32)
    assert gripper_closed(readings, closed=closed, threshold=threshold).tolist() == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gripper_closed": np.zeros((3, 1))}, "unequal length"),
        ({"gripper_closed": np.array([[0.0], [np.nan]])}, "frame 1 .*not finite"),
        ({"base_pose_tool_reached": np.zeros((2, 7))}, "length zero"),
        ({"base_pose_tool_reached": np.ones((2, 6))}, r"takes \[T, 7\], got \(2, 6\)"),
        ({"natural_language_instruction": np.array([b" ", b""], object)}, "is empty"),
    ],
)
def test_a_bad_episode_is_named_with_the_reason(changes, reason):
    with pytest.raises(BadEpisodeError, match=reason) as error:
        standard_trajectory(recording(**changes), ROW, "shard-3#17")
    assert "'fractal20220817_data', episode shard-3#17" in str(error.value)
