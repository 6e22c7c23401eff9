import dataclasses

import numpy as np
import pytest

from data.rows.table import dataset
from data.stream.windows import (
    candidate_frames,
    episode_samples,
    interpolate,
    moves,
    split_points,
    window_positions,
)
from data.trajectory import Trajectory, standard_trajectory

# frames, rate (Hz), window (s), start -> positions of points 1, 2, 3, 15, 30 of 31
POSITIONS = [
    (40, 30, 1, 0, (1, 2, 3, 15, 30)),
    (40, 30, 1, 9, (10, 11, 12, 24, 39)),
    (40, 30, 1, 29, (29 + 1 / 3, 29 + 2 / 3, 30, 34, 39)),
    (50, 5, 5, 10, (10 + 5 / 6, 11 + 4 / 6, 12.5, 22.5, 35)),
    (50, 5, 5, 39, (39 + 1 / 3, 39 + 2 / 3, 40, 44, 49)),
    (40, 3, 10, 4, (5, 6, 7, 19, 34)),
    (150, 30, 2, 10, (12, 14, 16, 40, 70)),
    (100, 15, 4, 0, (2, 4, 6, 30, 60)),
    (200, 30, 4, 10, (14, 18, 22, 70, 130)),
    (200, 30, 4, 169, (170, 171, 172, 184, 199)),
]

# golden dataset -> our row with the original's numbers, key of the row -> key of the recording
ORIGINALS = {
    "bridge": (
        dataset("bridge_dataset"),
        {"observation.state": "proprio", "action": "action"},
    ),
    "droid_left": (
        dataset("droid_left"),
        {
            "observation.cartesian_position": "observation/cartesian_position",
            "observation.gripper_position": "observation/gripper_position",
        },
    ),
    "libero": (
        dataclasses.replace(dataset("libero_demos"), rate_hz=30.0, window_s=1.0, index_margin=10),
        {"observation.command_pose": "abs_action_6d"},
    ),
}


@pytest.mark.parametrize(("frames", "rate", "window", "start", "expected"), POSITIONS)
def test_window_positions(frames, rate, window, start, expected):
    positions = window_positions(
        np.arange(frames - 1), frames, window_frames=rate * window, num_actions=30
    )
    assert positions.shape == (frames - 1, 31)
    assert positions[start, 0] == start
    np.testing.assert_allclose(positions[start, [1, 2, 3, 15, 30]], expected, atol=1e-12)


def test_the_margin_ends_the_candidates_and_short_episodes_have_none():
    for frames, margin, candidates in ((50, 10, 40), (11, 10, 1), (10, 10, 0), (0, 1, 0)):
        row = dataclasses.replace(dataset("bridge_dataset"), index_margin=margin)
        starts = candidate_frames(Trajectory("d", "e", "do", np.zeros((frames, 20)), ()), row)
        assert starts.tolist() == list(range(candidates))


def test_a_gripper_step_becomes_fractional():
    gripper = (np.arange(50) >= 12).astype(np.float64)[:, None]
    positions = window_positions(np.arange(40), 50, window_frames=25, num_actions=30)
    values = interpolate(gripper, positions)[10, :5, 0]
    np.testing.assert_allclose(values, [0, 0, 2 / 3, 1, 1], atol=1e-6)


def test_still_samples_are_left_out_by_any_channel():
    points = np.zeros((3, 31, 20), np.float32)
    points[1, 1:, 9] = 1.0  # the gripper alone
    points[2, 2:, 0] = 1.0  # moves later than in the first step
    np.testing.assert_array_equal(moves(points, 1e-5), [False, True, False])


def test_delta_comes_before_the_mask():
    points = np.array([[[2, 20, 5], [3, 30, 5], [4, 40, 5]]], np.float32)
    proprio, actions = split_points(points, (0,), (1,))
    np.testing.assert_array_equal(proprio, [[2, 0, 5]])
    np.testing.assert_array_equal(actions, [[[1, 30, 5], [2, 40, 5]]])
    assert points[0, 0, 1] == 20, "the input stays as it was"


def test_delta_and_mask_equal_the_original(golden):
    z = golden("action_slice.npz")
    cases = sorted({key.split("/")[0] for key in z.files})
    assert len(cases) == 7
    for case in cases:
        delta, mask = tuple(z[f"{case}/delta"].tolist()), tuple(z[f"{case}/mask"].tolist())
        proprio, actions = split_points(z[f"{case}/trajectory"], delta, mask)
        np.testing.assert_array_equal(proprio, z[f"{case}/proprio"])
        np.testing.assert_array_equal(actions, z[f"{case}/action"])


def test_a_window_of_one_point_is_an_error():
    with pytest.raises(ValueError, match="two points"):
        split_points(np.zeros((1, 20), np.float32), (), ())


@pytest.mark.parametrize("name", ORIGINALS)
def test_samples_equal_the_original_reader(golden, name):
    row, keys = ORIGINALS[name]
    z = golden("original_samples.npz")
    rows_by_clock = []
    for episode in range(2):
        raw = {ours: z[f"{name}/{episode}/{theirs}"] for ours, theirs in keys.items()}
        frames = len(next(iter(raw.values())))
        blank = tuple(np.array([b"x"] * frames, object) for _ in row.views)
        trajectory = standard_trajectory(raw, row, str(episode), instruction="do", images=blank)
        rows_by_clock.append(episode_samples(trajectory, row, 30))
    episodes = np.repeat([0, 1], [len(samples) for samples in rows_by_clock])
    np.testing.assert_array_equal(episodes, z[f"{name}/all/episode"])
    frames = np.concatenate([samples.frames for samples in rows_by_clock])
    np.testing.assert_array_equal(frames, z[f"{name}/all/index"])
    proprio = np.concatenate([samples.proprio for samples in rows_by_clock])
    actions = np.concatenate([samples.actions for samples in rows_by_clock])
    assert actions.dtype == proprio.dtype == np.float32
    chosen = z[f"{name}/select/position"]
    for ours, theirs in (
        (proprio, z[f"{name}/all/proprio"]),
        (actions.mean(axis=1), z[f"{name}/all/action_mean"]),
        (proprio[chosen], z[f"{name}/select/proprio"]),
        (actions[chosen], z[f"{name}/select/action"]),
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)
