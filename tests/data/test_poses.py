"""Recorded poses that are none, and those that are copied."""

import dataclasses

import numpy as np
import pytest

from data.faults import BadEpisodeError
from data.poses import xyz_rot6d
from data.rows.table import dataset
from data.spec import Arm, Columns, Gripper
from data.trajectory import standard_trajectory


def libero_poses(rotation, frame=1):
    rows = np.tile(np.array([0.1, 0.2, 0.3, 1, 0, 0, 0, 1, 0, 1]), (3, 1))
    rows[frame, 3:9] = rotation
    row = dataclasses.replace(dataset("libero"), views=())
    raw = {"abs_action_6d": rows}
    return standard_trajectory(raw, row, "e", instruction="do", images=()).poses


@pytest.mark.parametrize(
    ("rotation", "kind", "reason"),
    [
        ([0] * 6, "zero_rotation", "frame 1 has length zero"),
        ([1e-30] * 6, "zero_rotation", "frame 1 has length zero"),
        ([1, 0, 0, 0, 0, 0], "not_orthonormal", "frame 1"),
        ([2, 0, 0, 0, 2, 0], "not_orthonormal", r"frame 1, \[2.0, 0.0, .* contiguous"),
        ([1, 0, 0, 0, 1.002, 0], "not_orthonormal", "within 0.001"),
        ([1, 0, 0, 0.6, 0.8, 0], "not_orthonormal", "at right angles"),
        ([1, 0, 0, 1, 0, 0], "not_orthonormal", "it is one in layout interleaved"),
    ],
    ids=str,
)
def test_what_is_no_rotation_is_named_with_its_frame(rotation, kind, reason):
    with pytest.raises(BadEpisodeError, match=reason) as error:
        libero_poses(rotation)
    assert error.value.kind == kind


def test_placeholders_of_a_4x4_matrix_are_no_poses():
    """The columns of a matrix as three pieces: position last, rotation first."""
    pose = (Columns("matrix", 12, 15), Columns("matrix", 0, 3), Columns("matrix", 4, 7))
    gripper = Gripper(key="gripper", column=0, closed="low", threshold=None)
    arm = Arm(pose=pose, pose_encoding="xyz_rot6d", gripper=gripper)
    row = dataclasses.replace(dataset("libero"), arms=(arm,), picture_offset=0)
    matrices = np.tile(np.eye(4), (2, 1, 1)).transpose(0, 2, 1)
    raw = {"matrix": matrices, "gripper": np.zeros(2)}
    trajectory = standard_trajectory(raw, row, "e", instruction="do", images=())
    assert trajectory.poses[0, 3:9].tolist() == [1, 0, 0, 0, 1, 0]
    matrices[0] = 0
    with pytest.raises(BadEpisodeError, match="frame 0 has length zero"):
        standard_trajectory(raw, row, "e", instruction="do", images=())


def test_rotations_of_half_precision_are_copied():
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(rng.normal(size=(3, 3, 3)))[0][..., :2]
    rotations = columns.swapaxes(-1, -2).reshape(3, 6).astype(np.float16)
    for frame, rotation in enumerate(rotations):
        np.testing.assert_array_equal(libero_poses(rotation, frame)[frame, 3:9], rotation)


def test_a_rotation_of_unknown_layout_is_one_in_any():
    for layout in ("interleaved", "contiguous"):
        xyz_rot6d([[0, 0, 0, 1, 0, 0, 1, 0, 0]], "xyz_rot6d_as_recorded", layout)
        xyz_rot6d([[0, 0, 0, 1, 0, 0, 0, 1, 0]], "xyz_rot6d_as_recorded", layout)
        with pytest.raises(ValueError, match="none in layout interleaved or contiguous"):
            xyz_rot6d([[0, 0, 0, 1, 0, 0, 0, 0, 0]], "xyz_rot6d_as_recorded", layout)


def test_beside_joints_a_rotation_may_be_in_any_layout():
    row = dataset("libero")
    joints = (Columns("abs_action_6d", 0, 3),)
    row = dataclasses.replace(row, joints=joints, rotation_layout="none", views=())
    for rotation in ((1, 0, 0, 0, 1, 0), (1, 0, 0, 1, 0, 0)):
        raw = {"abs_action_6d": np.tile([0.1, 0.2, 0.3, *rotation, 1], (3, 1))}
        trajectory = standard_trajectory(raw, row, "e", instruction="do", images=())
        assert trajectory.poses[0].tolist() == [0.1, 0.2, 0.3] + [0] * 17
    with pytest.raises(BadEpisodeError, match="length zero"):
        standard_trajectory(
            {"abs_action_6d": np.zeros((3, 10))}, row, "e", instruction="do", images=()
        )
