"""Adapters of CALVIN, RoboTwin and VLABench against stand-ins of their APIs."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.files import FileError
from eval.simulators.calvin import NUM_SEQUENCES, SEQUENCES, CalvinEnv, load_sequences
from eval.simulators.host import SimulatorHost
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.robotwin import RobotwinEnv
from eval.simulators.vlabench import VlabenchEnv
from eval.tasks.profiles import View
from eval.tasks.spec import Episode, TaskSpec
from eval.tasks.table import TASKS
from tests.eval.standins import Log, calls, calvin, install, robotwin, spec, vlabench


@pytest.fixture
def numpy_state() -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002  # that of the benchmark
    yield
    np.random.set_state(state)  # noqa: NPY002


@pytest.fixture
def scene_d(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, numpy_state: None
) -> tuple[CalvinEnv, Log]:
    log: Log = []
    install(monkeypatch, calvin.modules(log, str(tmp_path)))
    monkeypatch.setenv("CALVIN_DATASET", str(tmp_path))
    return CalvinEnv(spec(step_limit=4), 0), log


def forward(x: float) -> list[float]:
    return [x, 0, 0, 0, 0, 0, 1, -1.0]


def test_calvin_goes_through_five_subtasks_without_a_reset(scene_d: tuple[CalvinEnv, Log]) -> None:
    env, log = scene_d
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    assert state["state"]["key"][0] == 0, "the seed"
    env.reset(0, seed=0)
    instructions = []
    solved = []
    for subtask in range(5):
        instructions.append(env.instruction)
        solved += [env.step(forward(subtask + 0.5)), env.step(forward(subtask + 1.0))]
    assert instructions[:3] == [
        "please rotate_blue_block_right",
        "please move_slider_right",
        "press the button, so that it's on",
    ]
    assert solved == [False] * 9 + [True]
    assert env.score() == 5
    assert not env.failed
    assert calls(log, "get_env") == [("validation", False)]
    assert [robot[0] for robot, _ in calls(log, "reset")] == [0.02586889]
    with pytest.raises(ValueError, match="sequence is over"):
        env.step(forward(9))


def test_calvin_needs_no_data_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, numpy_state: None
) -> None:
    log: Log = []
    install(monkeypatch, calvin.modules(log, str(tmp_path)))
    monkeypatch.delenv("CALVIN_DATASET", raising=False)
    CalvinEnv(spec(step_limit=4), 0)
    ((overrides, arguments),) = calls(log, "environment")
    assert overrides == [
        "scene=calvin_scene_D",
        "robot=panda_longer_finger",
        "cameras=static_and_gripper",
    ]
    assert arguments == {"show_gui": False, "use_vr": False, "use_scene_info": True}
    monkeypatch.setenv("CALVIN_DATASET", "/nowhere")
    with pytest.raises(SimulatorSetupError, match="CALVIN_DATASET is '/nowhere'"):
        CalvinEnv(spec(step_limit=4), 0)


def test_the_official_sequences_are_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sequences = load_sequences()
    assert len(sequences) == NUM_SEQUENCES
    assert {len(set(subtasks)) for subtasks, _, _ in sequences} == {5}
    assert len({scene.tobytes() for _, _, scene in sequences}) == 192
    # the first row, as mees/calvin fa03f01 returned it
    subtasks, robot, scene = sequences[0]
    assert subtasks == (
        "rotate_blue_block_right",
        "move_slider_right",
        "lift_red_block_slider",
        "place_in_slider",
        "turn_off_lightbulb",
    )
    assert robot[:3].tolist() == [0.02586889, -0.2313129, 0.5712808]
    assert scene[[0, 1, 3, 11, 23]].tolist() == [
        *(0.28, 0.22, 0.088),
        *(1.8859410064104645, 1.4683986863194542),
    ]
    changed = tmp_path / "sequences.json"
    changed.write_bytes(SEQUENCES.read_bytes().replace(b"0.28", b"0.27", 1))
    monkeypatch.setattr("eval.simulators.calvin.SEQUENCES", changed)
    with pytest.raises(FileError, match=r"sequences\.json has been changed"):
        load_sequences()


def test_calvin_ends_at_the_first_subtask_out_of_steps(scene_d: tuple[CalvinEnv, Log]) -> None:
    env, _ = scene_d
    env.reset(0, seed=0)
    for x in (0.1, 0.2, 1.0):  # the second subtask has four steps of its own
        env.step(forward(x))
    ended = []
    for _ in range(4):
        env.step(forward(1.5))
        ended.append(env.failed)
    assert ended == [False, False, False, True]
    assert env.solved == 1
    env.reset(0, seed=0)
    assert not env.failed


def test_calvin_observes(scene_d: tuple[CalvinEnv, Log]) -> None:
    env, _ = scene_d
    env.reset(0, seed=0)
    shapes = {name: value.shape for name, value in env.observe().items()}
    assert shapes == {
        "rgb_static": (200, 200, 3),
        "rgb_gripper": (84, 84, 3),
        "robot_obs": (15,),
    }


def test_a_host_gives_each_subtask_its_own_steps(scene_d: tuple[CalvinEnv, Log]) -> None:
    env, _ = scene_d
    row = TASKS["libero_spatial"]
    client = dataclasses.replace(
        row.client,
        views=(View("s", "rgb_static", None, "static", flip_rows=False, flip_columns=False),),
        state=(),
        executed=1,
        feedback="none",
        action=dataclasses.replace(row.client.action, rotation_form="quat_xyzw"),
    )
    host = SimulatorHost(spec(client=client, step_limit=4), lambda *_: env)

    def chunk(x: float) -> np.ndarray:
        return np.array([[x, 0, 0, 1, 0, 0, 0, 1, 0, 1, *[0] * 10]], np.float32)

    progress = host.start(Episode(0, 0, 0))
    for x in (0.1, 0.2, 1.0, 1.5, 1.5, 1.5):
        progress = host.advance(chunk(x))
        assert progress.observation is not None
        assert not progress.success
    progress = host.advance(chunk(1.5))  # the fourth step of the second subtask
    assert (progress.steps, progress.success, progress.observation) == (7, False, None)
    host.start(Episode(0, 0, 0))
    solved = [host.advance(chunk(x)).success for x in (1, 2, 3, 4, 5)]
    assert solved == [False] * 4 + [True]


@pytest.fixture(params=robotwin.LAYOUTS)
def twin(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[RobotwinEnv, Log]:
    log: Log = []
    robotwin.checkout(tmp_path, request.param)
    install(monkeypatch, robotwin.modules(log, tmp_path, request.param))
    monkeypatch.setenv("ROBOTWIN_ROOT", str(tmp_path))
    monkeypatch.setattr("eval.simulators.preflight.vulkan_devices", lambda: "llvmpipe")
    monkeypatch.chdir(os.getcwd())  # the adapter goes elsewhere
    monkeypatch.setattr(sys, "path", list(sys.path))
    row = spec(suite="demo_clean", seed_offset=0, task_names=("beat_block_hammer",))
    return RobotwinEnv(row, 0), log


def test_robotwin_takes_seeds_at_which_the_expert_succeeds(twin: tuple[RobotwinEnv, Log]) -> None:
    env, log = twin
    assert env.instruction == "beat block hammer"
    env.reset(1, seed=1)  # episode 1 of an evaluation with seed 0
    # 2000 raises, 2001 fails, 2002 and 2003 are good; then the episode's own scene.
    tried = [(0, 2000, 240), (0, 2001, 240), (0, 2002, 240), (1, 2003, 240), (1, 2003, 240)]
    assert calls(log, "setup") == tried
    assert len(calls(log, "close")) == 4
    env.reset(0, seed=0)
    assert calls(log, "setup")[5:] == [(0, 2002, 240)]


def test_an_unstable_seed_is_skipped_and_later_episodes_run(
    twin: tuple[RobotwinEnv, Log],
) -> None:
    env, log = twin
    for number, seed in ((2, 2006), (3, 2007)):
        env.reset(number, seed=number)
        assert calls(log, "setup")[-1] == (number, seed, 240)
    tried = [seed for _, seed, _ in calls(log, "setup")]
    assert (tried.count(robotwin.UNSTABLE), tried.count(robotwin.CROWDED)) == (1, 1)


def test_robotwin_frees_the_renderer_as_often_as_its_configuration_says(
    twin: tuple[RobotwinEnv, Log],
) -> None:
    env, log = twin
    for number in (0, 1):
        env.reset(number, seed=number)
    env.close()
    # the scenes of seeds 2000 to 2002, of episode 0, of seed 2003 and of episode 1
    assert calls(log, "close") == [False, True] * 3


def test_robotwin_steps_until_success_or_a_lost_actor(twin: tuple[RobotwinEnv, Log]) -> None:
    env, _ = twin
    env.reset(0, seed=0)
    assert not env.step([0.5] + [0.0] * 15)
    assert not env.failed
    assert env.step([1.5] + [0.0] * 15)
    env.reset(0, seed=0)
    assert not env.step([0.5, 9.0] + [0.0] * 14)
    assert env.failed


def test_robotwin_observes(twin: tuple[RobotwinEnv, Log]) -> None:
    env, _ = twin
    env.reset(0, seed=0)
    seen = env.observe()
    assert seen["images"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert seen["left_endpose"].tolist() == [0, 0.1, 0.2, 1, 0, 0, 0]
    assert seen["grippers"].tolist() == [0.25, 1.0]


@pytest.fixture
def track(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[TaskSpec, Log]:
    log: Log = []
    vlabench.checkout(tmp_path)
    install(monkeypatch, vlabench.modules(log))
    # no context here: MuJoCo's software rendering crashes beside TensorFlow
    monkeypatch.setattr("eval.simulators.preflight.require_headless_gl", lambda: "llvmpipe")
    monkeypatch.setenv("VLABENCH_ROOT", str(tmp_path))
    return spec(suite=vlabench.TRACK), log


def test_vlabench_builds_each_scene_of_the_track(track: tuple[TaskSpec, Log]) -> None:
    row, log = track
    env = VlabenchEnv(row, 1)
    hashes = [env.reset(state, seed=5) for state in (0, 1)]
    assert env.instruction == "do add_condiment"
    assert [task for task, _ in calls(log, "load_env")] == ["add_condiment"] * 2
    asked = {"eval": False, "run_mode": "eval", "random_init": False}
    assert [kwargs for _, kwargs in calls(log, "load_env")] == [asked] * 2
    assert len(calls(log, "close")) == 1
    assert hashes[0] != hashes[1]
    with pytest.raises(ValueError, match=r"state 2 of add_condiment.*0\.\.1"):
        env.reset(2, seed=0)
    with pytest.raises(ValueError, match=r"task 3 of track_1"):
        VlabenchEnv(row, 3)


def test_vlabench_says_that_its_assets_are_missing(
    track: tuple[TaskSpec, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = track

    def missing(name: str) -> None:
        # VLABench/configs/constant.py lists the folders of meshes when it is imported
        raise FileNotFoundError(2, "No such file or directory", "assets/obj/meshes/basket")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(SimulatorSetupError, match=r"meshes/basket.*vlabench/README\.md"):
        VlabenchEnv(row, 0)


@pytest.mark.parametrize(
    ("task_id", "row_limit", "registered", "limit"),
    [(2, 5, True, 3), (2, 2, True, 2), (1, 5, True, 5), (0, 5, True, 5), (2, 5, False, 5)],
)
def test_vlabench_ends_at_the_limit_that_it_registers_for_a_task(
    track: tuple[TaskSpec, Log], task_id: int, row_limit: int, registered: bool, limit: int
) -> None:
    row, _ = track
    row = dataclasses.replace(row, step_limit=row_limit, registered_limits=registered)
    env = VlabenchEnv(row, task_id)
    for state in (0, 1):
        env.reset(state, seed=0)
        ended = []
        for _ in range(limit):
            env.step([0.5, 0, 0, 0, 0, 0, 0, 0])
            ended.append(env.failed)
        assert ended == [False] * (limit - 1) + [True]


def test_vlabench_repeats_an_action_until_the_joints_are_there(track: tuple[TaskSpec, Log]) -> None:
    row, log = track
    env = VlabenchEnv(row, 0)
    env.reset(0, seed=0)
    assert not env.step([0.9, 0, 0, 0, 0, 0, 0.04, 0.04])
    # 1/128 is the first distance below a hundredth; the quaternion's w starts at distance 1.
    assert calls(log, "step") == [[0.04, 0.04]] * 7
    assert env.step([3.0, 0, 0, 0, 0, 0, 0.0, 0.0])
    assert len(calls(log, "step")) == 8
    assert env.observe()["rgb"].shape == (4, 480, 480, 3)
    assert env.score() == 50.0
    assert env.renderer_name.endswith(" on llvmpipe")
