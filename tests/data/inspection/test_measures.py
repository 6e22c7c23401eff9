"""The numbers that the checks judge, against values that one can see."""

import dataclasses
import math

import numpy as np
import pytest

from data.inspection import grippers
from data.inspection.camera import ENOUGH_R2, Change, fit_cameras
from data.inspection.content_checks import copies
from data.inspection.grippers import gripper_report, polarity, wilson_low
from data.inspection.reports import channel_names, channels, even_places, ranges
from data.inspection.scan import measure, scan
from tests.data.inspection.robots import CAMERA, EPISODES, FRAMES, Robot, episode, healthy, row


def test_angles_between_rotations():
    # columns of 1, of a quarter turn about z, and of half a turn about x
    columns = np.array([[[1, 0], [0, 1], [0, 0]], [[0, -1], [1, 0], [0, 0]]], float)
    turned = grippers.matrices(columns)
    assert grippers.angles(turned[0], turned[1]) == pytest.approx(math.pi / 2)
    half = grippers.matrices(np.array([[1, 0], [0, -1], [0, 0]], float))
    assert grippers.angles(turned[0], half) == pytest.approx(math.pi)
    assert grippers.angles(turned[0], grippers.matrices(3 * columns[0])) == 0


def test_skew_of_columns():
    columns = np.array([[1, 0], [0, 1], [0, 0]], float)
    assert grippers.skew(columns) == 0
    assert grippers.skew(2 * columns) == 3
    assert grippers.skew(columns + np.array([[0, 0.1], [0, 0], [0, 0]])) == pytest.approx(0.1)


@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
def test_columns_are_read_in_the_layout_of_the_row(layout):
    spec = row(rotation_layout=layout)
    six = [1, 4, 2, 5, 3, 6] if layout == "interleaved" else [1, 2, 3, 4, 5, 6]
    hands = np.array([[[0, 0, 0, *six, 0]]], float)
    np.testing.assert_array_equal(
        grippers.rotation_columns(hands, spec)[0, 0], [[1, 4], [2, 5], [3, 6]]
    )


def test_a_gripper_that_closes_lifts_and_opens():
    readings = np.array([0.1, 0.1, 0.8, 0.9, 0.9, 0.2])
    report = gripper_report(readings, np.array([0.5, 0.2, 0.1, 0.3, 0.2, 0.9]))
    assert (report.starts_closed, report.ends_closed, report.switches) == (False, False, 2)
    assert report.rise == pytest.approx(0.2)
    assert (report.open_level, report.closed_level) == (0.1, 0.9)
    assert (report.reading_low, report.reading_high) == (0.1, 0.9)


def grip(starts_closed, open_level=0.0, closed_level=1.0):
    report = gripper_report(np.array([0.0, 1.0, 0.0]), np.zeros(3))
    return dataclasses.replace(
        report, starts_closed=starts_closed, open_level=open_level, closed_level=closed_level
    )


def test_polarity_weighs_its_signs():
    assert polarity([grip(True)] * 7) is None
    plain = polarity([grip(True)] * 8)
    assert plain is not None
    assert plain.confidence == pytest.approx(wilson_low(8, 8)) == pytest.approx(0.676, abs=1e-3)
    # what varies is the hand that holds something: when it is called open, it is the wrong way
    levels = np.linspace(0.0, 0.4, 8)
    worse = polarity([grip(True, open_level=level) for level in levels])
    better = polarity([grip(True, closed_level=1 - level) for level in levels])
    assert worse is not None
    assert better is not None
    assert better.confidence < 0.65 <= plain.confidence < worse.confidence


def test_a_bound_of_a_share():
    assert wilson_low(0, 10) == 0
    assert wilson_low(5, 10) == pytest.approx(0.2366, abs=1e-4)  # Wilson's formula, by hand


def test_even_places_keep_both_ends():
    assert even_places(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert even_places(9, 3).tolist() == [0, 4, 8]
    assert even_places(1, 3).tolist() == [0]


def test_ranges_and_names():
    rows = np.zeros((101, 10))
    rows[:, 1] = np.arange(101) / 100
    rows_by_channel = ranges(row(), [channels(rows, 101)])
    assert [r.name for r in rows_by_channel][:4] == ["x", "y", "z", "rot0"]
    assert rows_by_channel[1][2:] == pytest.approx((0, 0.01, 0.5, 0.99, 1))
    assert (rows_by_channel[1].unit, rows_by_channel[1].span) == ("m", pytest.approx(0.98))
    arm = row().arms[0]
    assert channel_names(row(arms=(arm, arm)))[10][0] == "right x"


def test_a_camera_is_fitted_only_where_there_is_one():
    rng = np.random.default_rng(0)
    xyz = rng.normal(0, 0.2, (80, 3))
    centres = xyz @ CAMERA[:, :3].T + CAMERA[:, 3] + rng.normal(0, 0.01, (80, 2))
    centres[::16] = rng.random((5, 2))  # a person walks by
    seen = [Change(i // 10, 0, xyz[i], centres[i]) for i in range(80)]
    (camera,) = fit_cameras(seen, 1)
    np.testing.assert_allclose(camera.matrix, CAMERA, atol=0.05)
    np.testing.assert_allclose(camera.project(xyz[1]), centres[1], atol=0.05)
    assert camera.r2 > ENOUGH_R2
    (none,) = fit_cameras([c._replace(centre=rng.random(2)) for c in seen], 1)
    assert none.r2 < ENOUGH_R2
    assert fit_cameras(seen[:10], 1) == ()


def test_the_camera_of_the_images_is_fitted():
    (camera,) = scan(Robot(row(), healthy()), num_actions=6).cameras
    np.testing.assert_allclose(camera.matrix, CAMERA, atol=0.1)
    assert camera.r2 > 0.9


def test_numbers_of_an_episode():
    spec = row()
    report = measure(episode(0, spec), spec, num_actions=6)
    assert (report.num_frames, report.candidates, report.samples) == (
        FRAMES,
        FRAMES - 2,
        FRAMES - 2,
    )
    assert report.targets is not None
    assert report.targets.high.shape == (10,)
    (hand,) = report.hands
    assert (hand.position_jumps, hand.rotation_jumps, hand.gripper.switches) == (0, 0, 2)
    assert [view.sizes for view in report.views] == [((64, 64),)] * 2
    assert all(100 < view.encoded_bytes < 5000 for view in report.views)


def test_copies_name_the_first():
    spec = row()
    episodes = [measure(episode(n, spec), spec, num_actions=6) for n in (0, 1, 0, 1, 2)]
    assert [tuple(copy) for copy in copies(episodes)] == [(0, 2, True), (1, 3, True)]


def test_a_sample_of_the_episodes_is_repeatable_and_reads_no_more_than_it_needs():
    episodes = healthy()
    seen = []
    for _ in range(2):
        robot = Robot(row(), episodes, per_part=1)
        report = scan(robot, num_actions=6, episodes=3, seed=1)
        assert len(robot.parts_read) == 3
        seen.append([e.episode for e in report.episodes])
    assert seen[0] == seen[1]
    other = scan(Robot(row(), episodes), num_actions=6, episodes=3, seed=2)
    assert [e.episode for e in other.episodes] != seen[0]
    assert (report.looked_at, sum(report.episodes_per_part)) == (3, EPISODES)


def test_progress_tells_of_every_episode():
    calls = []
    robot = Robot(row(), healthy()[:3])
    scan(robot, num_actions=6, on_progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 3, 1), (2, 3, 2), (3, 3, 3)]
