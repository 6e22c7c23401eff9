"""The LIBERO adapter: its arithmetic without a simulator, then the real one in a worker."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from importlib import util
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.client.episode import row_to_action
from eval.rotations import ROT6D_LAYOUTS
from eval.simulators import libero, preflight
from eval.simulators.host import SimulatorHost
from eval.simulators.libero import LiberoEnv
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerPool, run_jobs
from eval.tasks.table import TASKS, Episode, episodes, task_spec
from tests.eval import fakes

CONTIGUOUS = ROT6D_LAYOUTS["contiguous"]
SPEC = TASKS["quickstart"]


def row(gripper: float) -> list[float]:
    # A quarter turn about z, and an unused second arm.
    return [0.1, 0.2, 0.3, 0, 1, 0, -1, 0, 0, gripper, *[0.0] * 10]


@pytest.mark.parametrize(
    ("probability", "command"), [(0.6, 1.0), (0.4, -1.0), (0.5, -1.0), (1.0, 1.0), (0.0, -1.0)]
)
def test_rows_become_commands(probability: float, command: float) -> None:
    made = row_to_action(SPEC.client, row(probability))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, [0.1, 0.2, 0.3, 0, 0, np.pi / 2, command], atol=1e-7)


def test_thresholds_and_signs_come_from_the_row_of_the_task() -> None:
    rule = dataclasses.replace(SPEC.client.gripper, threshold=0.9, closed=(-1.0,), open=(1.0,))
    action = dataclasses.replace(SPEC.client.action, gripper=rule)
    made = row_to_action(dataclasses.replace(SPEC.client, action=action), row(0.8))
    assert made[6] == 1.0


def test_a_simulator_refuses_to_share_a_process_with_tensorflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    with pytest.raises(SimulatorSetupError, match="tensorflow is imported"):
        LiberoEnv(SPEC, 3)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Any]:
    """Calls methods of one LIBERO host in a worker."""
    if util.find_spec("libero") is None:
        pytest.skip("LIBERO is not installed (extra sim)")
    with WorkerPool(functools.partial(fakes.host_with_gl, SPEC), 1) as pool:

        def call(method: str, *arguments: Any) -> Any:
            ((_, value),) = run_jobs(pool, [(method, arguments)])
            return value

        problem = call("gl_problem")
        if problem:
            pytest.skip(problem)
        yield call


START = Episode(3, 31, 7)


@pytest.mark.sim
def test_the_expert_solves_a_held_out_state(simulator: Any) -> None:
    attempt = simulator("attempt_by_expert", START)
    assert attempt.success
    assert attempt.steps < 110
    assert attempt.rows.shape == (attempt.steps, 10)


@pytest.mark.sim
def test_a_reset_forgets_everything_before_it(simulator: Any) -> None:
    first = simulator("start", START)
    simulator("attempt_by_expert", Episode(3, 35, 1))  # leaves the gripper closed or opening
    again = simulator("start", START)
    assert again.state_hash == first.state_hash
    assert simulator("start", Episode(3, 32, 7)).state_hash != first.state_hash
    for one, other in zip(first.observation["images"], again.observation["images"], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.observation["proprio"], again.observation["proprio"])


@pytest.mark.sim
def test_states_behind_the_official_ones_repeat_held_out_ones(simulator: Any) -> None:
    # state 51 is state 31 again; with the same seed both are displaced alike
    assert simulator("start", Episode(3, 51, 7)).state_hash == simulator("start", START).state_hash
    (one, other) = episodes(SPEC, init_states=(31, 51), seed=0)
    hashes = {simulator("start", episode).state_hash for episode in (one, other)}
    assert len(hashes) == 2


@pytest.mark.sim
def test_an_observation_is_what_door_two_says(simulator: Any) -> None:
    seen = simulator("start", START).observation
    assert seen["instruction"] == "pick up the bbq sauce and place it in the basket"
    assert seen["domain_id"] == 3
    assert [(i.shape, i.dtype.name) for i in seen["images"]] == [((128, 128, 3), "uint8")] * 2
    proprio = seen["proprio"]
    assert (proprio.shape, proprio.dtype.name) == ((20,), "float32")
    assert not proprio[9:].any()
    # The hand starts above the table's middle and points down: its axis z is the world's -z.
    np.testing.assert_allclose(proprio[:3], [-0.15, 0.0, 0.26], atol=0.05)
    np.testing.assert_allclose(CONTIGUOUS.to_matrix(proprio[3:9])[:, 2], [0, 0, -1], atol=0.1)
    # Upright and mirrored: the pale basket is on the left, only dark floor on the right.
    view = seen["images"][0].astype(float)
    assert view[50:80, 10:45].mean() > view[50:80, 90:125].mean() + 20


@pytest.mark.sim
def test_leaving_out_what_a_camera_cannot_see_changes_no_pixel(simulator: Any) -> None:
    assert simulator("pixels_changed_by_culling", START) == [0, 0]
    hidden = simulator("shapes_left_out", START)
    assert hidden[1] > 20, "the wrist camera sees a small part of the scene"


@pytest.mark.sim
def test_absolute_commands_arrive(simulator: Any) -> None:
    start = simulator("start", START).observation["proprio"]
    target = start.copy()
    target[:3] += [0.05, -0.05, 0.02]
    proprio = simulator("advance", np.tile(target, (30, 1))).observation["proprio"]
    np.testing.assert_array_equal(proprio[:9], target[:9])  # the last row, not what was reached
    position, matrix = simulator("pose")
    np.testing.assert_allclose(position, target[:3], atol=5e-3)
    np.testing.assert_allclose(CONTIGUOUS.from_matrix(matrix), start[3:9], atol=2e-2)


@pytest.mark.sim
@pytest.mark.slow
def test_disturbances_of_the_real_scene(simulator: Any) -> None:
    names = ("", ":light0", ":camera2", ":distractors2", ":delay2", ":place2")
    seen = {
        name: simulator("beginning", task_spec(f"quickstart{name}"), START, 6) for name in names
    }
    state, agentview, wrist, path = seen[""]

    for one, other in zip(seen[":light0"], seen[""], strict=True):
        np.testing.assert_array_equal(one, other)
    # the camera in the room moves, that of the hand does not, and nothing else does
    camera = seen[":camera2"]
    assert camera[0] == state
    assert (camera[1] != agentview).any(axis=-1).mean() > 0.2
    np.testing.assert_array_equal(camera[2], wrist)
    np.testing.assert_array_equal(camera[3], path)
    # two more things are seen, and the arm begins where it did
    distractors = seen[":distractors2"]
    assert distractors[0] != state
    changed = (distractors[1] != agentview).any(axis=-1).mean()
    assert 0.005 < changed < 0.2
    np.testing.assert_allclose(distractors[3], path, atol=1e-4)
    # two control steps late: the hand waits where it is, and then goes the same way
    late = seen[":delay2"]
    np.testing.assert_array_equal(late[1], agentview)
    assert np.abs(np.diff(late[3][:2], axis=0)).max() < 1e-4
    np.testing.assert_allclose(late[3][2:], path[:4], atol=2e-3)
    assert seen[":place2"][0] != state


@pytest.mark.sim
def test_a_task_that_the_suite_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = SimpleNamespace(get_num_tasks=lambda: 10)
    monkeypatch.setattr(libero, "_load_suite", lambda name: suite)
    monkeypatch.setattr(preflight, "require_headless_gl", lambda: "none")
    for name in ("refuse_modules", "check_mujoco", "installed"):
        monkeypatch.setattr(preflight, name, lambda *_: None)
    with pytest.raises(ValueError, match=r"libero_object has no task 10; its tasks are 0\.\.9"):
        LiberoEnv(SPEC, 10)


def test_missing_headless_gl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glx")
    with WorkerPool(functools.partial(fakes.host_with_gl, SPEC), 1) as pool:
        ((_, problem),) = run_jobs(pool, [("gl_problem", ())])
    assert "egl or osmesa" in problem
    assert os.environ["MUJOCO_GL"] == "glx"


def test_a_host_keeps_one_task_at_a_time() -> None:
    closed = []

    class Env(fakes.FakeEnv):
        def close(self) -> None:
            closed.append(self)

    host = SimulatorHost(fakes.SPEC, Env)
    host.start(Episode(3, 0, 0))
    host.start(Episode(3, 1, 0))
    assert not closed
    host.start(Episode(4, 0, 0))
    assert len(closed) == 1
