"""The guard's limits, one by one, with numbers that can be checked in the head."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from eval.robot.guard import ActionGuard, GuardLimits, StaleObservationError, slowed
from eval.rotations import ROT6D_LAYOUTS, axis_angle_to_matrix, matrix_to_axis_angle

LAYOUTS = sorted(ROT6D_LAYOUTS)
LOOSE = GuardLimits(
    rotation_layout="contiguous",
    arms=(0,),
    control_hz=10.0,
    workspace_low=(-1.0, -1.0, -1.0),
    workspace_high=(1.0, 1.0, 1.0),
    speed=1e3,
    turn_rate=1e3,
    jerk=1e9,
    gripper=(0.0, 1.0),
    observation_age=0.5,
)


def pose(
    xyz: Any = (0, 0, 0), turn: Any = (0, 0, 0), gripper: float = 0.0, layout: str = "contiguous"
) -> np.ndarray:
    row = np.zeros(20)
    row[0:3] = xyz
    row[3:9] = ROT6D_LAYOUTS[layout].from_matrix(axis_angle_to_matrix(turn))
    row[9] = gripper
    return row


def guarded(start: np.ndarray, row: np.ndarray, **limits: Any) -> tuple[np.ndarray, list[tuple]]:
    guard = ActionGuard(dataclasses.replace(LOOSE, **limits))
    guard.reset(start)
    checked = guard.check(row, observed=0.0, now=0.1)
    return checked, [tuple(clip) for clip in guard.clips]


def test_what_keeps_the_limits_is_passed_on() -> None:
    row = pose((0.1, 0.2, -0.3), (0, 0, 0.5), 0.7)
    checked, clips = guarded(pose(), row)
    np.testing.assert_array_equal(checked, row.astype(np.float32))
    assert clips == []


def test_speed_keeps_the_direction() -> None:
    """10 Hz and 1 m/s: a tenth of a metre in a step."""
    checked, clips = guarded(pose(), pose((0.3, 0.4, 0)), speed=1.0)
    np.testing.assert_allclose(checked[:3], (0.06, 0.08, 0), atol=1e-7)
    ((step, field, value, limit),) = clips
    assert (step, field) == (0, "arm0.speed")
    np.testing.assert_allclose((value, limit), (5.0, 1.0))


def test_the_workspace_is_a_box_of_each_axis(caplog: pytest.LogCaptureFixture) -> None:
    checked, clips = guarded(pose(), pose((2, -3, 0.5)))
    np.testing.assert_allclose(checked[:3], (1, -1, 0.5))
    assert clips == [(0, "arm0.workspace_x", 2, 1), (0, "arm0.workspace_y", -3, -1)]
    assert "step 0: arm0.workspace_x 2 clipped, limit 1" in caplog.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_turn_rate_is_of_rotations(layout: str) -> None:
    """A quarter turn in a step at 10 Hz is 15.7 rad/s; 1 rad/s leaves a tenth of a radian."""
    quarter = np.pi / 2
    checked, clips = guarded(
        pose(layout=layout),
        pose(turn=(0, quarter, 0), layout=layout),
        rotation_layout=layout,
        turn_rate=1.0,
    )
    turn = matrix_to_axis_angle(ROT6D_LAYOUTS[layout].to_matrix(checked[3:9]))
    np.testing.assert_allclose(turn, (0, 0.1, 0), atol=1e-6)
    assert clips[0][1] == "arm0.turn_rate"
    np.testing.assert_allclose(clips[0][2:], (10 * quarter, 1.0))


def test_jerk_is_the_third_difference() -> None:
    """From rest, 100 m/s^3 at 10 Hz allow 0.1 m in the first step; cubes keep it."""
    checked, clips = guarded(pose(), pose((0.5, 0, 0)), jerk=100.0)
    np.testing.assert_allclose(checked[:3], (0.1, 0, 0), atol=1e-7)
    np.testing.assert_allclose(clips[0][2:], (500.0, 100.0))
    guard = ActionGuard(dataclasses.replace(LOOSE, jerk=100.0))
    guard.reset(pose())
    cubes = [i**3 * 0.1 / 6 for i in range(4)]  # third difference 0.1 m: just allowed
    for x in cubes[1:]:
        guard.check(pose((x, 0, 0)), observed=0, now=0)
    assert [clip.field for clip in guard.clips] == []


@pytest.mark.parametrize("held", [0, 3])
def test_after_a_hold_the_robot_stands(held: int) -> None:
    """In mid-motion it cannot stay where it is without a jerk; after holding it can."""
    guard = ActionGuard(dataclasses.replace(LOOSE, jerk=10.0))
    guard.reset(pose())
    for _ in range(5):
        last = guard.check(pose((0.9, 0, 0)), observed=0, now=0)
    for _ in range(held):
        guard.held()
    assert guard.step == 5 + held
    stays = guard.check(last, observed=0, now=0)[0] == last[0]
    assert stays == bool(held)


def test_speed_and_workspace_win_over_jerk() -> None:
    guard = ActionGuard(dataclasses.replace(LOOSE, jerk=20.0, speed=1.0))
    guard.reset(pose())
    x = 0.0
    for target in [0.9] * 20 + [-0.9] * 30:
        before = x
        x = guard.check(pose((target, 0, 0)), observed=0, now=0)[0]
        assert abs(x - before) <= 0.1 + 1e-6
        assert -1 <= x <= 1
    assert {clip.field for clip in guard.clips} >= {"arm0.jerk", "arm0.speed"}


def test_the_gripper_and_the_other_arm() -> None:
    row = pose(gripper=1.4)
    row[10:20] = 7.0  # an arm that the robot does not have
    checked, clips = guarded(pose(), row)
    assert checked[9] == 1.0
    assert checked[10:].tolist() == [7.0] * 10
    assert clips == [(0, "arm0.gripper", 1.4, 1.0)]
    both = np.concatenate((pose()[:10], pose((3, 0, 0))[:10]))
    checked, clips = guarded(np.tile(pose()[:10], 2), both, arms=(0, 1))
    assert [clip[1] for clip in clips] == ["arm1.workspace_x"]


def test_old_observations_and_nonsense_are_refused() -> None:
    guard = ActionGuard(LOOSE)
    with pytest.raises(StaleObservationError, match=r"0\.600 s old; at most 0\.5 s"):
        guard.check(pose(), observed=1.0, now=1.6)
    with pytest.raises(ValueError, match="call reset"):
        guard.check(pose(), observed=0, now=0)
    guard.reset(pose())
    with pytest.raises(ValueError, match="must be finite"):
        guard.check(pose((np.nan, 0, 0)), observed=0, now=0)


def test_a_robot_outside_of_its_workspace_is_not_driven() -> None:
    guard = ActionGuard(LOOSE)
    with pytest.raises(ValueError, match=r"arm 0 is at \[0\.0, 0\.0, 1\.5\], outside"):
        guard.reset(pose((0, 0, 1.5)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_speed_is_halfway_on_the_great_circle(layout: str) -> None:
    start = pose(layout=layout)
    chunk = [
        pose((0.2, 0, 0), (0, 0, 1.0), 1.0, layout), pose((0.2, 0.4, 0), (0, 0, 2.0), 0.0, layout)
    ]  # fmt: skip
    slow = slowed(chunk, start=start, factor=0.5, layout=layout, arms=(0,))
    assert slow.shape == (4, 20)
    np.testing.assert_allclose(slow[:, 0], (0.1, 0.2, 0.2, 0.2), atol=1e-7)
    np.testing.assert_allclose(slow[:, 1], (0, 0, 0.2, 0.4), atol=1e-7)
    turns = matrix_to_axis_angle(ROT6D_LAYOUTS[layout].to_matrix(slow[:, 3:9]))
    np.testing.assert_allclose(turns[:, 2], (0.5, 1.0, 1.5, 2.0), atol=1e-6)
    assert slow[:, 9].tolist() == [0, 1, 1, 0]
    assert not slow[:, 10:].any()


def test_first_contact_is_slow_until_it_is_settled() -> None:
    guard = ActionGuard(LOOSE)
    guard.reset(pose())
    row = pose((0.1, 0, 0), (0.2, 0, 0), 1.0)
    half, end = guard.paced(row)
    np.testing.assert_allclose(half, pose((0.05, 0, 0), (0.1, 0, 0), 0.0), atol=1e-6)
    np.testing.assert_allclose(end, row, atol=1e-6)
    guard.settle()
    np.testing.assert_allclose(guard.paced(row), [row], atol=1e-6)
    guard.reset(pose())
    assert len(guard.paced(row)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation_layout": "rows"}, "rotation_layout 'rows'"),
        ({"arms": (2,)}, "arms"),
        ({"workspace_high": (1.0, -1.0, 1.0)}, "is empty"),
        ({"speed": 0.0}, "speed is 0.0"),
    ],
)
def test_limits_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LOOSE, **change)
