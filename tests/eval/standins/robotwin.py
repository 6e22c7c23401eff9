"""A RoboTwin checkout at cf47ab5 of one task: its configurations, and the class of the task.

What is read of the arguments, what is refused and what is raised are the source's; no physics.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import yaml

FAILS, RAISES, UNSTABLE, CROWDED = 2001, 2000, 2004, 2005
# folders of the configurations, before and since the commit ba23672
LAYOUTS = ("task_config", "env_cfg/task_config")
STEP_LIMIT = 3
_IMAGES = ("head_camera", "left_camera", "right_camera", "front_camera")


class UnStableError(Exception):
    """Objects do not come to rest; as in RoboTwin's envs/utils/create_actor.py."""

    def __init__(self, msg: str) -> None:
        super().__init__(msg)


class Task:
    """The expert raises at seed 2000 and fails at 2001; x > 1 solves the task.

    Objects are unstable at seed 2004, and find no place at 2005.
    """

    log: ClassVar[list[tuple[str, Any]]] = []
    configurations: ClassVar[Path]

    def setup_demo(self, **kwags: Any) -> None:
        seed = kwags["seed"]
        assert kwags["is_test"]
        assert isinstance(seed, int)
        self.log.append(("setup", (kwags["now_ep_num"], seed, kwags["head_camera_h"])))
        kwags["domain_randomization"].get("random_background", False)
        for arm in ("left", "right"):
            assert Path(kwags[f"{arm}_robot_file"]).is_dir()
            assert len(kwags[f"{arm}_embodiment_config"]["arm_joints_name"]) == 2
        assert kwags["dual_arm_embodied"] is True
        static = [c["name"] for c in kwags["left_embodiment_config"]["static_camera_list"]]
        wrist = ["left_camera", "right_camera"] if kwags["camera"]["collect_wrist_camera"] else []
        self._cameras = [*static, *wrist] if kwags["data_type"].get("rgb", False) else []
        self._has_endpose = kwags["data_type"].get("endpose", False)
        self._seed, self._x, self._steps = seed, 0.0, 0
        self.plan_success = seed != FAILS
        if seed == CROWDED:
            # the source raises a string, which Python turns into this
            raise TypeError("exceptions must derive from BaseException")
        if seed == UNSTABLE:
            raise UnStableError(f"Objects is unstable in seed({seed}), unstable objects: box")
        if kwags["eval_mode"]:
            limits = (self.configurations / "_eval_step_limit.yml").read_text(encoding="utf-8")
            self._limit = yaml.safe_load(limits)[kwags["task_name"]]

    def play_once(self) -> dict[str, Any]:
        if self._seed == RAISES:
            raise RuntimeError("unstable objects")
        self._x = 2.0
        return {"info": {}}

    def get_obs(self) -> dict[str, Any]:
        cameras = {
            name: {"rgb": np.full((4, 6, 3), _IMAGES.index(name), np.uint8)}
            for name in self._cameras
        }
        pose = [self._x, 0.1, 0.2, 1.0, 0.0, 0.0, 0.0]
        ends = {"left_endpose": pose, "right_endpose": pose}
        grippers = {"left_gripper": 0.25, "right_gripper": 1.0}
        return {
            "observation": cameras,
            "pointcloud": [],
            "joint_action": {},
            "endpose": {**ends, **grippers} if self._has_endpose else {},
        }

    def take_action(self, action: Any, action_type: str = "qpos") -> None:
        if self._steps == self._limit:
            return
        assert action_type == "ee"
        assert action.shape == (16,)  # xyz, wxyz and gripper of each arm
        self._steps += 1
        self._x = float(action[0])
        if action[1] >= 5:
            self.actor_pose = False

    def check_success(self) -> np.bool_:
        return np.bool_(self._x > 1)

    def close_env(self, clear_cache: bool = False) -> None:
        self.log.append(("close", clear_cache))


def checkout(folder: Path, configurations: str) -> None:
    """Writes the configuration files that the adapter reads.

    Args:
        folder: of the checkout.
        configurations: folder in it; `LAYOUTS` has those that RoboTwin has had.
    """
    place = folder / configurations
    place.mkdir(parents=True)
    robots = folder / "assets" / "embodiments" / "aloha-agilex"
    robots.mkdir(parents=True)
    task = {
        "render_freq": 7,
        "embodiment": ["aloha-agilex"],
        "domain_randomization": {"random_background": False, "cluttered_table": False},
        "camera": {
            "head_camera_type": "D435",
            "wrist_camera_type": "D435",
            "collect_head_camera": True,
            "collect_wrist_camera": True,
        },
        "data_type": {"rgb": True, "depth": False, "endpose": True, "qpos": True},
        "clear_cache_freq": 2,
    }
    robot = {
        "arm_joints_name": [["fl_joint1"], ["fr_joint1"]],
        "static_camera_list": [{"name": "head_camera"}, {"name": "front_camera"}],
    }
    file = "./assets/embodiments/aloha-agilex/"
    for path, content in (
        (place / "demo_clean.yml", task),
        (place / "_camera_config.yml", {"D435": {"fovy": 37, "w": 320, "h": 240}}),
        (place / "_embodiment_config.yml", {"aloha-agilex": {"file_path": file}}),
        (place / "_eval_step_limit.yml", {"beat_block_hammer": STEP_LIMIT}),
        (robots / "config.yml", robot),
    ):
        path.write_text(yaml.safe_dump(content), encoding="utf-8")


def modules(log: list[tuple[str, Any]], folder: Path, configurations: str) -> dict[str, ModuleType]:
    """The packages `envs` and `envs.beat_block_hammer`."""
    package: Any = ModuleType("envs")
    package.CONFIGS_PATH = f"{folder / configurations}/"
    task: Any = ModuleType("envs.beat_block_hammer")
    task.beat_block_hammer = type(
        "beat_block_hammer", (Task,), {"log": log, "configurations": folder / configurations}
    )
    return {"envs": package, "envs.beat_block_hammer": task}
