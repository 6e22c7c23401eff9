"""The conversion of LIBERO's recordings as a program, in the real simulator."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.readers.libero_hdf5 import find_libero_files
from data.readers.rlds import RldsReader
from data.rows.table import dataset
from data.trajectory import Trajectory
from eval.recording.libero_absolute import moving
from eval.rotations import axis_angle_to_matrix, rot6d_contiguous_to_matrix
from eval.simulators.libero import task_index
from eval.simulators.workers import WorkerPool, run_jobs
from eval.tasks.table import TASKS
from scripts import convert_libero
from tests.eval.recordings import MOVES, TURNS, DrivingHost, write_libero_file

TASK = "put_the_bowl_on_the_plate"
SPECS = {"libero_goal": TASKS["libero_goal"]}


def test_the_conversion_names_what_it_read(tmp_path: Path) -> None:
    states, actions = np.zeros((2, 5)), np.zeros((2, 7))
    folder = tmp_path / "public"
    write_libero_file(folder / "libero_10/both_demo.hdf5", [(states, actions)] * 3)
    write_libero_file(folder / "libero_goal/push_demo.hdf5", [(states, actions)])
    names = convert_libero.open_conversion(folder, tmp_path / "a", 0).missing()
    assert names == [
        *(f"libero_10/both/demo_{number}" for number in range(3)),
        "libero_goal/push/demo_0",
    ]
    short = convert_libero.open_conversion(folder, tmp_path / "b", 1)
    assert short.missing() == ["libero_10/both/demo_0", "libero_goal/push/demo_0"]
    settings = short.report()["settings"]
    assert list(settings["sources"]) == ["libero_10/both_demo.hdf5", "libero_goal/push_demo.hdf5"]
    assert settings["suites"]["libero_10"]["step_limit"] == 900
    assert {file.suite for file in find_libero_files(folder, tuple(convert_libero.suites()))} == {
        "libero_10",
        "libero_goal",
    }


def turn(first: Any, second: Any) -> float:
    """The angle (rad) between two matrices [3, 3]."""
    return float(np.arccos(np.clip((np.trace(first.T @ second) - 1) / 2, -1, 1)))


def goal(
    position: Any, matrix: Any, action: Any, goal_matrix: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the goal of robosuite's controller for a relative action, by its formula."""
    clipped = np.clip(action, -1, 1)
    if np.any(clipped[3:6]):
        goal_matrix = axis_angle_to_matrix(TURNS * clipped[3:6]) @ matrix
    return position + MOVES * clipped[:3], goal_matrix


@pytest.fixture(scope="module")
def recording() -> dict[str, np.ndarray]:
    if util.find_spec("libero") is None:
        pytest.skip("LIBERO is not installed (extra sim)")
    with WorkerPool(functools.partial(DrivingHost, SPECS, task_index), 1) as pool:
        job = ("record", ("libero_goal", TASK, 0))
        ((_, made),) = run_jobs(pool, [job])
    return made


@pytest.mark.sim
@pytest.mark.slow
def test_the_goals_are_those_of_the_controllers_formula(recording: dict[str, Any]) -> None:
    kept = None
    for i, action in enumerate(recording["actions"]):
        before = recording["position"][i], recording["matrix"][i]
        position, kept = goal(*before, action, kept if i else recording["goal_matrix"][0])
        np.testing.assert_allclose(recording["goal_position"][i], position, atol=1e-7)
        assert turn(recording["goal_matrix"][i], kept) < 1e-3


@pytest.mark.sim
@pytest.mark.slow
def test_a_recording_becomes_an_episode_of_absolute_commands_that_solves_the_task(
    recording: dict[str, Any], tmp_path: Path
) -> None:
    states, actions = recording["states"], recording["actions"]
    demos = [(states, actions), (states[:12], actions[:12])]
    write_libero_file(tmp_path / f"public/libero_goal/{TASK}_demo.hdf5", demos)
    command = [sys.executable, "-m", "scripts.convert_libero", "--workers=1", "--licence=CC-BY-4.0"]
    command += [f"--hdf5={tmp_path / 'public'}", f"--out={tmp_path / 'data'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "data/libero_conversion/conversion.json").read_text())
    kept = actions[moving(actions)]
    assert len(actions) - len(kept) > 3
    assert report["suites"]["libero_goal"] | {"no_ops": 0} == {
        "recordings": 2,
        "tried": 2,
        "converted": 1,
        "dropped": 1,
        "no_ops": 0,
    }
    dropped = report["demos"][f"libero_goal/{TASK}/demo_1"]["outcome"]
    assert dropped == "the relative replay does not end solved"
    assert f"demo_1: {dropped}" in done.stdout

    spec = dataset("libero_rlds")
    reader = RldsReader(spec, tmp_path / "data")
    manifest = json.loads((reader.folder / "manifest.json").read_text())
    assert manifest["receipt"] == report
    (trajectory,) = reader.read(0)
    assert isinstance(trajectory, Trajectory)
    assert trajectory.instruction == "put the bowl on the plate"
    assert len(trajectory.poses) == len(kept) + 1 == len(trajectory.images[0])
    frames = np.load(next((tmp_path / "data/libero_conversion").glob("*.npz")))
    assert frames["agentview"].shape[1:] == (256, 256, 3)
    expected = rot6d_contiguous_to_matrix(frames["command_pose"][1, 3:9])
    for i, action in enumerate(kept):
        before = frames["ee_pose"][i, :3], rot6d_contiguous_to_matrix(frames["ee_pose"][i, 3:9])
        position, expected = goal(*before, action, expected)
        # the measured pose is one step of the physics older than what the controller starts from
        row = frames["command_pose"][i + 1]
        np.testing.assert_allclose(row[:3], position, atol=2e-3)
        assert turn(rot6d_contiguous_to_matrix(row[3:9]), expected) < 0.02
        assert row[9] == action[6]
