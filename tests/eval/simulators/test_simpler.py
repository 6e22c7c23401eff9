"""SimplerEnv's adapter against a stand-in of ManiSkill2_real2sim."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.simpler import SimplerEnv
from eval.tasks.profiles import View
from eval.tasks.spec import Scenario
from eval.tasks.table import TASKS
from tests.eval.standins import Log, calls, install, simpler, spec

OVERHEAD = View("image", "image", None, "overhead_camera", flip_rows=False, flip_columns=False)
CAN = TASKS["google_vm_coke"].scenarios[0]
SCENARIO = Scenario(
    CAN.name,
    CAN.env,
    CAN.make_kwargs,
    robots=((0.35, 0.2, 0.0, 0.0, 0.0, 1.0), (0.65, -0.2, 0.0, 0.0, 0.0, 1.0)),
    objects=(("init_xy", (-0.35, -0.02)), ("init_xy", (-0.35, 0.09))),
)


@pytest.fixture
def maniskill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Log:
    log: Log = []
    simpler.checkout(tmp_path)
    install(monkeypatch, simpler.modules(log))
    monkeypatch.setenv("SIMPLER_DIR", str(tmp_path))
    monkeypatch.setattr("eval.simulators.preflight.vulkan_devices", lambda: "llvmpipe")
    return log


SIMPLER = sorted(name for name, row in TASKS.items() if row.benchmark == "simpler")


@pytest.mark.parametrize("name", SIMPLER)
def test_every_scenario_of_simpler_is_made_and_observed(name: str, maniskill: Log) -> None:
    row = TASKS[name]
    for task_id in row.task_ids:
        env = SimplerEnv(row, task_id)
        env.reset(row.scenarios[task_id].num_episodes - 1, seed=0)
        assert {"tcp_pose", "base_pose", "image"} == set(env.observe())
    cameras = {str(kwargs["rgb_overlay_cameras"]) for _, kwargs in calls(maniskill, "make")}
    overlaid = {"widowx": "['3rd_view_camera']", "google_vm": "['overhead_camera']"}
    kind = name.rsplit("_", 1)[0] if name.startswith("widowx") else name[:9]
    assert cameras == {overlaid.get(kind, "None")}


@pytest.fixture
def google(maniskill: Log) -> tuple[SimplerEnv, Log]:
    return SimplerEnv(spec(OVERHEAD, scenarios=(SCENARIO,)), 0), maniskill


def test_simpler_makes_one_environment_for_each_robot_pose(
    google: tuple[SimplerEnv, Log], tmp_path: Path
) -> None:
    env, log = google
    hashes = [env.reset(state, seed=0) for state in range(4)]
    assert [name for name, _ in calls(log, "make")] == [SCENARIO.env] * 2
    overlay = "ManiSkill2_real2sim/data/real_inpainting/google_coke_can_real_eval_1.png"
    paths = [kwargs["rgb_overlay_path"] for _, kwargs in calls(log, "make")]
    assert paths == [f"{tmp_path}/{overlay}"] * 2
    assert [name for name, _ in log] == ["make", "reset", "reset", "close", "make", *["reset"] * 2]
    placed = [options["obj_init_options"] for options in calls(log, "reset")]
    assert placed == [{"init_xy": (-0.35, -0.02)}, {"init_xy": (-0.35, 0.09)}] * 2
    robots = [options["robot_init_options"] for options in calls(log, "reset")]
    assert [robot["init_xy"].tolist() for robot in robots] == [[0.35, 0.2]] * 2 + [[0.65, -0.2]] * 2
    assert robots[0]["init_rot_quat"].tolist() == [0, 0, 0, 1]
    assert hashes[0] == hashes[2] != hashes[1]


def test_simpler_observes_steps_and_ignores_truncation(google: tuple[SimplerEnv, Log]) -> None:
    env, _ = google
    assert env.renderer_name.endswith(" on llvmpipe")
    env.reset(0, seed=0)
    assert env.instruction == "open the drawer"
    assert not env.step([0.5, 0.6, 0.7, 0, 0, 0, 1])
    seen = env.observe()
    assert seen["image"].shape == (4, 5, 3)
    np.testing.assert_allclose(seen["tcp_pose"], [0.5, 0.6, 0.7, 1, 0, 0, 0], atol=1e-7)
    assert seen["base_pose"].tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert env.step([0.5, 0.6, 1.1, 0, 0, 0, 1])
    assert env.instruction == "put the apple in"


@pytest.mark.parametrize("name", ["widowx_spoon", "widowx_eggplant", "google_vm_near"])
def test_simpler_takes_absolute_poses_with_euler_angles(name: str, maniskill: Log) -> None:
    env = SimplerEnv(TASKS[name], 0)
    env.reset(0, seed=0)
    # a quarter turn about z after one about x: as a rotation vector it is another rotation
    env.step([0.1, 0.2, 0.3, np.pi / 2, 0, np.pi / 2, 1])
    np.testing.assert_allclose(env.observe()["tcp_pose"], [0.1, 0.2, 0.3, *[0.5] * 4], atol=1e-12)


def test_the_added_control_modes_are_the_public_ones_in_the_frame_of_the_base(
    maniskill: Log,
) -> None:
    robots: Any = sys.modules["mani_skill2_real2sim.envs.custom_scenes.base_env"]
    robots = robots.CustomSceneEnv.SUPPORTED_ROBOTS
    before = robots["widowx"].get_default_config().controllers
    SimplerEnv(TASKS["widowx_spoon"], 0)
    added = robots["widowx"].get_default_config().controllers
    SimplerEnv(TASKS["widowx_spoon"], 0)
    assert sorted(set(added) - set(before)) == [
        "arm_pd_ee_target_base_pose_gripper_pd_joint_pos",
        "arm_pd_ee_target_base_pose_gripper_pd_joint_target_pos",
    ]
    assert all(added[name] == row for name, row in before.items())
    absolute = added["arm_pd_ee_target_base_pose_gripper_pd_joint_pos"]
    assert vars(absolute["arm"]) == {
        **vars(before["arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"]["arm"]),
        "frame": "base",
        "use_delta": False,
    }
    assert absolute["gripper"] == "gripper_pd_joint_pos"
    assert "takes_absolute_poses" not in vars(robots["google_robot_static"])


def test_simpler_refuses_a_state_that_does_not_exist(google: tuple[SimplerEnv, Log]) -> None:
    with pytest.raises(ValueError, match=r"state 4 of google_robot_pick.*0\.\.3"):
        google[0].reset(4, seed=0)


def test_simpler_makes_one_environment_for_each_widowx_episode(maniskill: Log) -> None:
    env = SimplerEnv(TASKS["widowx_spoon"], 0)
    for state in (0, 23):
        env.reset(state, seed=0)
    assert [name for name, _ in calls(maniskill, "make")] == ["PutSpoonOnTableClothInScene-v0"] * 2
    placed = [options["obj_init_options"] for options in calls(maniskill, "reset")]
    assert placed == [{"episode_id": 0}, {"episode_id": 23}]


def test_simpler_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    row = spec(OVERHEAD, scenarios=(SCENARIO,))
    monkeypatch.delenv("SIMPLER_DIR", raising=False)
    with pytest.raises(SimulatorSetupError, match="SIMPLER_DIR"):
        SimplerEnv(row, 0)
    monkeypatch.setenv("SIMPLER_DIR", "/")
    monkeypatch.setitem(sys.modules, "mani_skill2_real2sim", None)
    with pytest.raises(SimulatorSetupError, match=r"environments/simpler/README"):
        SimplerEnv(row, 0)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        ("Cannot find a suitable rendering device", SimulatorSetupError),
        ("vk::PhysicalDevice::createDeviceUnique: ErrorExtensionNotPresent", SimulatorSetupError),
        ("renderer is out of memory", RuntimeError),
    ],
)
def test_a_device_that_cannot_render_is_named(
    raised: str, error: type[Exception], maniskill: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, **_: Any) -> None:
        raise RuntimeError(raised)

    monkeypatch.setattr(sys.modules["gymnasium"], "make", make)
    with pytest.raises(RuntimeError, match=raised) as caught:
        SimplerEnv(TASKS["widowx_spoon"], 0)
    assert caught.type is error
    if error is SimulatorSetupError:
        assert "(llvmpipe lacks what it needs" in str(caught.value)
