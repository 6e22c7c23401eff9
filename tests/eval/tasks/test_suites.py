"""The table against the numbers of the protocols that it repeats."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.client import episode
from eval.client.episode import EpisodeClient, gripper_command, row_to_action
from eval.tasks.google_scenarios import robot_pose
from eval.tasks.table import TASKS, Scenario, TaskSpec, episodes, task_spec

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "golden_eval"
STRICT = [spec for spec in TASKS.values() if spec.name.endswith(":strict")]
# they have no published protocol
OURS = {name for name in TASKS if name.startswith(("quickstart", "so101"))}
QUARTER_TURN = [0, -1, 1, 0, 0, 0]  # about z, interleaved


@pytest.mark.parametrize(
    ("name", "scenarios", "count"),
    [
        ("google_vm_coke", 12, 300),
        ("google_vm_near", 4, 240),
        ("google_vm_open_close", 216, 216),
        ("google_vm_place_in", 12, 108),
        ("google_va_coke", 33, 825),
        ("google_va_near", 10, 600),
        ("google_va_open_close", 42, 210),
        ("google_va_open_close:strict", 42, 378),
        ("google_va_place_in", 7, 189),
        ("widowx_spoon", 1, 24),
    ],
)
def test_scenarios_are_as_many_as_the_original_runs(name: str, scenarios: int, count: int) -> None:
    spec = task_spec(name)
    assert len(spec.scenarios) == scenarios
    assert sum(scenario.num_episodes for scenario in spec.scenarios) == count
    assert len(episodes(spec, init_states=range(spec.num_init_states), seed=0)) == count
    assert len({scenario.name for scenario in spec.scenarios}) == scenarios


def test_coke_scenarios_equal_the_originals() -> None:
    released = json.loads((FOLDER / "scenarios_google_vm_coke.json").read_text(encoding="utf-8"))
    common = released["common"]
    spec = task_spec("google_vm_coke")
    assert spec.step_limit == common["used_max_steps"]
    assert task_spec("google_vm_coke:strict").step_limit == common["registered_max_steps"]
    for ours, theirs in zip(spec.scenarios, released["scenarios"], strict=True):
        assert (ours.name, ours.env) == (theirs["scenario"], common["env"])
        expected = {**common["make_kwargs"], **theirs["make_kwargs"]}
        assert json.loads(json.dumps(dict(ours.make_kwargs))) == expected
        np.testing.assert_allclose(ours.robots, theirs["robot"], atol=1e-6)
        assert {key for key, _ in ours.objects} == {"init_xy"}
        np.testing.assert_allclose(
            [value for _, value in ours.objects], common["objects"]["init_xy"], atol=1e-6
        )


def kwargs(scenario: Scenario) -> dict[str, Any]:
    return dict(scenario.make_kwargs)


def test_the_urdf_typo_runs_two_scenes_twice_and_two_never() -> None:
    def combinations(name: str) -> Counter[tuple[Any, ...]]:
        return Counter(
            (s.env, kwargs(s)["rgb_overlay_path"], kwargs(s).get("urdf_version"))
            for s in task_spec(name).scenarios
        )

    released, meant = (
        combinations("google_vm_open_close"),
        combinations("google_vm_open_close:strict"),
    )
    assert set(meant.values()) == {1}
    assert len(meant) == 216
    never = sorted((env, str(path)[-6:], urdf) for env, path, urdf in meant - released)
    twice = sorted((env, str(path)[-6:], urdf) for env, path, urdf in released - meant)
    drawer = "OpenTopDrawerCustomInScene-v0"
    assert never == [(drawer, "a0.png", None), (drawer, "a1.png", None)]
    second = "recolor_tabletop_visual_matching_2"
    assert twice == [(drawer, "a0.png", second), (drawer, "a1.png", second)]


def test_the_grid_bug_leaves_five_places_of_nine() -> None:
    places = [pose[:2] for pose in task_spec("google_va_open_close").scenarios[0].robots]
    np.testing.assert_allclose(
        places, [(0.65, -0.2), (0.65, 0), (0.65, 0.2), (0.75, 0.2), (0.85, 0.2)], atol=1e-12
    )
    meant = task_spec("google_va_open_close:strict").scenarios[0].robots
    assert len({pose[:2] for pose in meant}) == 9


def test_robots_turn_from_a_half_turn_about_z() -> None:
    assert robot_pose(1.0, 2.0, 0.0)[2:] == (0.0, 0.0, 0.0, 1.0)
    # Half a turn and a quarter: 270 degrees about z, (cos 135, 0, 0, sin 135).
    quat = robot_pose(0, 0, math.pi / 2)[2:]
    np.testing.assert_allclose(quat, [-math.sqrt(0.5), 0, 0, math.sqrt(0.5)])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("libero_spatial", (1.0,)),
        ("calvin_abc_d", (1.0,)),
        ("widowx_spoon", (1.0,)),
        ("google_vm_coke", (1.0,)),
        ("robotwin_easy", (1.0,)),
        ("vlabench_track_1", (0.0, 0.0)),
        ("softfold", (-0.0054700000174343586,)),
    ],
)
def test_grippers_at_a_probability_of_six_tenths(name: str, command: tuple[float, ...]) -> None:
    """Golden values 8: closed in LIBERO, Google, VLABench and SoftFold, open in the others."""
    assert gripper_command(task_spec(name).client.gripper, 0.6) == command


THRESHOLDS = {
    "widowx_spoon": 0.7,
    "widowx_carrot": 0.95,
    "widowx_blocks": 0.91,
    "widowx_eggplant": 0.8,
    "calvin_abc_d": 0.8,
    "robotwin_easy": 0.7,
    "google_vm_coke": 0.25,
    "google_vm_near": 0.25,
    "google_vm_open_close": 0.35,
    "google_vm_place_in": 0.28,
    "google_va_coke": 0.25,
    "google_va_near": 0.25,
    "google_va_open_close": 0.25,
    "google_va_place_in": 0.30,
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholds(name: str) -> None:
    rule, at = task_spec(name).client.gripper, THRESHOLDS[name]
    above, below = gripper_command(rule, at + 1e-3), gripper_command(rule, at - 1e-3)
    assert (above, below) == (rule.closed, rule.open)
    exactly = rule.closed if name.startswith(("widowx", "calvin")) else rule.open
    assert gripper_command(rule, at) == exactly


@pytest.mark.parametrize(
    ("name", "limit", "strict"),
    [
        ("calvin_abc_d", 720, 360),
        ("widowx_spoon", 1200, 60),
        ("widowx_eggplant", 1200, 120),
        ("google_vm_near", 160, 80),
        ("google_va_open_close", 226, 113),
        ("google_vm_place_in", 400, 200),
        ("libero_10", 900, 520),
        ("robotwin_hard", 300, 300),
        ("vlabench_track_4", 200, 200),
    ],
)
def test_step_limits(name: str, limit: int, strict: int) -> None:
    assert task_spec(name).step_limit == limit
    assert task_spec(name + ":strict").step_limit == strict


def test_strict_rows_of_vlabench_alone_have_its_registered_limits() -> None:
    limited = [name for name, spec in TASKS.items() if spec.registered_limits]
    assert limited == [f"vlabench_track_{n}:strict" for n in range(1, 5)]


def test_every_protocol_has_both_profiles() -> None:
    plain = {name for name in TASKS if not name.endswith(":strict")} - OURS
    assert {spec.name for spec in STRICT} == {name + ":strict" for name in plain}
    assert len(plain) == 5 + 4 * 5 + 1 + 4 + 8 + 2 + 4 + 2


@pytest.mark.parametrize("spec", STRICT, ids=lambda spec: spec.name)
def test_strict_rows_are_tuned_to_nothing(spec: TaskSpec) -> None:
    assert spec.client.gripper.threshold == 0.5
    assert not spec.client.gripper.closed_at_threshold
    assert not spec.client.keeps_proprio
    assert not spec.client.shift_in_place
    assert spec.step_limit <= task_spec(spec.name[: -len(":strict")]).step_limit


def two_arms(row: list[float]) -> np.ndarray:
    return np.array([*row, *row], np.float32)


def test_robotwin_keeps_the_quaternions_that_it_mislabels() -> None:
    client = task_spec("robotwin_easy").client
    half = math.sqrt(0.5)
    # A quarter turn about z, wxyz, is read as a quarter turn about x.
    pose = np.array([0.1, 0.2, 0.3, half, 0, 0, half])
    raw = {"left_endpose": pose, "right_endpose": pose, "grippers": np.array([1.0, 0.25])}
    proprio = episode.proprio(client, raw)
    np.testing.assert_allclose(proprio[:10], [0.1, 0.2, 0.3, 1, 0, 0, 0, 0, 1, -1], atol=1e-12)
    assert proprio[19] == 0.5
    action = row_to_action(client, proprio)
    np.testing.assert_allclose(np.abs(action[:7]), pose, atol=1e-12)
    assert action.shape == (16,)


def test_robotwin_tells_the_pose_it_commanded_and_the_gripper_it_measures() -> None:
    client = EpisodeClient(dataclasses.replace(task_spec("robotwin_easy").client, executed=1))
    raw = {
        "images": np.zeros((4, 2, 2, 3), np.uint8),
        "left_endpose": np.array([0, 0, 0, 1.0, 0, 0, 0]),
        "right_endpose": np.array([0, 0, 0, 1.0, 0, 0, 0]),
        "grippers": np.array([0.25, 0.75]),
    }
    client.instruct("lift pot")
    assert len(client.request(raw)["images"]) == 3
    client.put(two_arms([1, 2, 3, *QUARTER_TURN, 0.9])[None])
    client.act()
    proprio = client.request(raw)["proprio"]
    expected = [1, 2, 3, *QUARTER_TURN, 0.5, 1, 2, 3, *QUARTER_TURN, -0.5]
    np.testing.assert_allclose(proprio, expected, atol=1e-6)


def test_vlabench_measures_and_moves_the_callers_numbers() -> None:
    raw = {
        "rgb": np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
        "ee_state": np.array([0.5, 0.0, 1.0, 1.0, 0, 0, 0, 0.25]),
    }
    client = EpisodeClient(task_spec("vlabench_track_1").client)
    client.instruct("select the toy")
    seen = client.request(raw)
    assert [int(image[0, 0, 0]) for image in seen["images"]] == [0, 2, 3]
    # wxyz (1, 0, 0, 0) read as xyzw: half a turn about x.
    expected = [0.5, 0.4, 0.22, 1, 0, 0, -1, 0, 0, 0.25]
    np.testing.assert_allclose(seen["proprio"][:10], expected, atol=1e-7)
    np.testing.assert_allclose(raw["ee_state"][:3], [0.5, 0.4, 0.22])
    strict = EpisodeClient(task_spec("vlabench_track_1:strict").client)
    before = raw["ee_state"].copy()
    proprio = strict.request(raw)["proprio"]
    np.testing.assert_allclose(proprio[3:9], [1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(raw["ee_state"], before)


def test_vlabench_actions() -> None:
    client = task_spec("vlabench_track_1").client
    row = [0.5, 0.4, 0.22, *QUARTER_TURN]
    opened = row_to_action(client, [*row, 0.5])
    np.testing.assert_allclose(opened, [0.5, 0, 1.0, 0, 0, math.pi / 2, 0.04, 0.04], atol=1e-12)
    assert row_to_action(client, [*row, 0.51])[6:].tolist() == [0, 0]


def test_softfold_sends_metres_and_remembers_over_a_reset() -> None:
    spec = task_spec("softfold")
    raw = {
        "images": np.zeros((3, 2, 2, 3), np.uint8),
        "left_pose": np.array([0, 0, 0, 0, 0, 0, 1.0]),
        "right_pose": np.array([1.0, 0, 0, 0, 0, 0, 1.0]),
        "left_joints": np.arange(7.0),
        "right_joints": np.arange(7.0) + 1,
    }
    client = EpisodeClient(dataclasses.replace(spec.client, executed=2))
    first = client.request(raw)["proprio"]
    identity = [1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(first, [0, 0, 0, *identity, 6, 1, 0, 0, *identity, 7])
    chunk = np.stack([two_arms([k, 0, 0, *QUARTER_TURN, 0.5 + 0.1 * k]) for k in range(3)])
    client.put(chunk)
    opened, closed = client.act(), client.act()
    np.testing.assert_allclose(
        opened[:7], [0, 0, 0, 0, 0, math.pi / 2, 0.06557999688386917], atol=1e-7
    )
    assert closed[13] == -0.0054700000174343586
    client.reset()
    np.testing.assert_allclose(client.request(raw)["proprio"], chunk[2])


def test_rows_without_a_list_of_tasks_ask_for_one() -> None:
    spec = task_spec("vlabench_track_2")
    with pytest.raises(ValueError, match="give task_ids of 'track_2_cross_category'"):
        episodes(spec, init_states=(0,), seed=0)
    assert len(episodes(spec, init_states=(0, 1), seed=0, task_ids=(0, 1, 2))) == 6
    assert len(task_spec("robotwin_easy").task_names) == 50
