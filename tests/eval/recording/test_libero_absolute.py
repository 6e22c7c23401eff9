"""Relative to absolute actions, on a simulator whose every number can be checked by eye."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.recording.libero_absolute import (
    CONVERTED,
    REPORT,
    Conversion,
    ConversionHost,
    Demonstration,
    conversion_settings,
    moving,
    record_absolute,
)
from eval.simulators.workers import WorkerPool
from tests.eval.recordings import SPECS, SUITE, DeltaEnv, OffEnv, index_of

START = np.array([0.0, 0.0, 0.2])
FORWARD, TURN, STAY = [1, 0, 0, 0, 0, 0, -1.0], [0, 0, 0, 0, 0, 1, 1.0], [0, 0, 0, 0, 0, 0, -1.0]


def demo(*actions: list[float], number: int = 0, task: str = "push_3") -> Demonstration:
    return Demonstration(SUITE, task, number, START, np.array(actions, np.float64))


def test_actions_that_do_nothing_are_left_out() -> None:
    tiny = [9e-5, 0, 0, 0, 0, 0, -1.0]
    just = [0, 0, 0, 1.1e-4, 0, 0, -1.0]
    close, closed = [0, 0, 0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, 0, 1.0]
    #        start  moves    none  small too little  grips  is closed  opens
    rows = [STAY, FORWARD, STAY, just, tiny, close, closed, STAY]
    assert moving(rows).tolist() == [False, True, False, True, False, True, False, True]
    # what the gripper does before the first motion has no action to be compared with
    assert moving([STAY, close, FORWARD]).tolist() == [False, False, True]


def test_rows_are_the_goals_of_the_controller_and_images_follow_the_actions() -> None:
    env = DeltaEnv(SPECS[SUITE], 3)
    actions = np.array([FORWARD, TURN, FORWARD], np.float64)
    made, solved = record_absolute(env, SPECS[SUITE], START, actions)
    assert solved
    assert {k: (v.dtype.name, v.shape) for k, v in made.items()} == {
        "agentview": ("uint8", (4, 8, 8, 3)),
        "wrist": ("uint8", (4, 8, 8, 3)),
        "command_pose": ("float32", (4, 10)),
        "ee_pose": ("float32", (4, 9)),
        "action": ("float32", (4, 7)),
    }
    assert made["agentview"][:, 0, 0, 0].tolist() == [0, 50, 50, 100]
    assert made["wrist"][:, 0, 0, 0].tolist() == [100, 150, 150, 200]
    x = [0, 0.05, 0.05, 0.1]
    np.testing.assert_allclose(made["command_pose"][:, 0], x, atol=1e-7)
    np.testing.assert_allclose(made["command_pose"][:, 9], [-1, -1, 1, -1])
    # command i stands in frame i as action and in frame i + 1 as what was commanded
    np.testing.assert_array_equal(made["action"][:-1, :3], made["command_pose"][1:, :3])
    np.testing.assert_array_equal(made["action"][:-1, 6], made["command_pose"][1:, 9])
    np.testing.assert_array_equal(made["action"][-1], made["action"][-2])
    # columns 0 and 1 of the matrix, before and after a turn by 0.5 rad about z
    c, s = np.cos(0.5), np.sin(0.5)
    np.testing.assert_allclose(made["command_pose"][1, 3:9], [0, 1, 0, 1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(made["command_pose"][2, 3:9], [-s, c, 0, c, s, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("env", "actions", "outcome"),
    [
        (DeltaEnv, [FORWARD, STAY, FORWARD], CONVERTED),
        (DeltaEnv, [FORWARD], "the relative replay does not end solved"),
        (DeltaEnv, [FORWARD, FORWARD, [-1, *FORWARD[1:]]], "the relative replay does not"),
        (OffEnv, [FORWARD, FORWARD], "the absolute replay does not solve the task"),
        (DeltaEnv, [STAY, STAY], "0 actions that move; 1 to 30 are possible"),
        (DeltaEnv, [FORWARD] * 31, "31 actions that move; 1 to 30 are possible"),
    ],
)
def test_only_what_both_replays_solve_is_kept(
    env: Any, actions: list[list[float]], outcome: str, tmp_path: Path
) -> None:
    path = tmp_path / "demo.npz"
    entry = ConversionHost(SPECS, index_of, env).convert(demo(*actions), str(path))
    assert entry["outcome"].startswith(outcome)
    assert path.exists() == (outcome == CONVERTED)
    still = actions.count(STAY)
    assert (entry["steps"], entry["no_ops"]) == (len(actions) - still, still)


def test_an_episode_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "demo.npz"
    ConversionHost(SPECS, index_of, DeltaEnv).convert(demo(FORWARD, FORWARD), str(path))
    made = np.load(path)
    assert (str(made["task"]), str(made["suite"])) == ("libero_goal/3", "libero_goal")
    assert str(made["instruction"]) == "push the plate"
    assert (made["rate_hz"], made["image_size"], made["init_state"]) == (20.0, 8, -1)
    assert len(made["action"]) == 3


DEMOS = [
    demo(FORWARD, FORWARD),
    demo(FORWARD, number=1),
    demo(FORWARD, STAY, FORWARD, task="push_4"),
]
SETTINGS = conversion_settings({"libero_goal/push_3_demo.hdf5": "abc"}, SPECS)


def open_pool() -> WorkerPool:
    return WorkerPool(functools.partial(ConversionHost, SPECS, index_of, DeltaEnv), 1)


def no_pool() -> WorkerPool:
    raise AssertionError("nothing is missing")


def test_a_report_tells_every_outcome_and_a_second_run_does_what_is_missing(
    tmp_path: Path,
) -> None:
    progress: list[tuple[int, int, int]] = []
    conversion = Conversion(tmp_path, DEMOS, SETTINGS)
    report = conversion.run(open_pool, lambda *counts: progress.append(counts))
    assert progress[0] == (0, 3, 0)
    assert progress[-1] == (3, 3, 2)
    assert report == json.loads((tmp_path / REPORT).read_text())
    counts = {"recordings": 3, "tried": 3, "converted": 2, "dropped": 1, "no_ops": 1}
    assert report["suites"] == {"libero_goal": counts}
    outcomes = {name: entry["outcome"] for name, entry in report["demos"].items()}
    assert outcomes == {
        "libero_goal/push_3/demo_0": CONVERTED,
        "libero_goal/push_3/demo_1": "the relative replay does not end solved",
        "libero_goal/push_4/demo_0": CONVERTED,
    }
    names = [path.name for path in conversion.files()]
    assert names == ["libero_goal__push_3__demo_0.npz", "libero_goal__push_4__demo_0.npz"]
    assert Conversion(tmp_path, DEMOS, SETTINGS).run(no_pool, lambda *_: None) == report

    (tmp_path / names[0]).unlink()
    again = Conversion(tmp_path, DEMOS, SETTINGS)
    assert again.missing() == ["libero_goal/push_3/demo_0"]


def test_a_conversion_of_other_files_or_rules_is_refused(tmp_path: Path) -> None:
    Conversion(tmp_path, [], SETTINGS).run(no_pool, lambda *_: None)
    larger = {SUITE: dataclasses.replace(SPECS[SUITE], image_size=16)}
    with pytest.raises(ValueError, match="a conversion with other sources, suites; choose"):
        Conversion(tmp_path, [], conversion_settings({}, larger))
