"""SimplerEnv, the WidowX and the Google robot alike, on the public ManiSkill2_real2sim.

The authors' fork lets both robots take absolute poses with Euler angles; the public code takes
steps. Those control modes are added here, with the gains that the public code has for steps. All
else in which the fork differs is in the rows. An environment is made for each scenario and robot
pose (for each episode where the row says so) and reset for each setting of the objects. Neither the
simulator's truncation flag nor its step limit ends an episode; the row's limit does.
"""

from __future__ import annotations

import copy
import hashlib
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.rotations import euler_xyz_to_matrix, matrix_to_quat_xyzw, quat_xyzw_to_wxyz
from eval.tasks.spec import TaskSpec

from . import preflight

# The folder that has ManiSkill2_real2sim, such as a checkout of SimplerEnv, in paths of a scenario.
PLACEHOLDER = "{SIMPLER_DIR}"

# what SAPIEN raises on Vulkan devices that lack what it needs, such as Mesa's before 26
_UNSUITABLE = ("Cannot find a suitable rendering device", "ErrorExtensionNotPresent")

# control mode of the arm that takes absolute poses -> the public one, with the same gains, that
# takes steps
ABSOLUTE_MODES = {
    "arm_pd_ee_target_base_pose": "arm_pd_ee_target_delta_pose_align2",
    "arm_pd_ee_base_pose_align_interpolate_by_planner": (
        "arm_pd_ee_delta_pose_align_interpolate_by_planner"
    ),
}


class SimplerEnv:
    """The adapter of one scenario of SimplerEnv.

    An initial state counts robot poses first: all objects of pose 0, then all of pose 1, ...

    Args:
        spec: row of the task table, with benchmark "simpler".
        task_id: index of the scenario.

    Raises:
        SimulatorSetupError: ManiSkill2_real2sim is missing, or SIMPLER_DIR where an overlay needs
            it, or there is no Vulkan device that can render.
    """

    num_parts = 1
    failed = False  # the step limit alone ends an episode early

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        self._spec = spec
        self._scenario = spec.scenarios[task_id]
        self._kwargs = {key: _as_made(value) for key, value in self._scenario.make_kwargs}
        self._gym = _maniskill(self._kwargs["robot"])
        self._robot: int | None = None
        self._observation: Any = None
        device = preflight.vulkan_devices()
        try:
            self._env = self._made()
        except RuntimeError as error:
            if any(words in str(error) for words in _UNSUITABLE):
                raise preflight.no_vulkan(f"{device} lacks what it needs: {error}") from error
            raise
        self.renderer_name = f"SAPIEN {preflight.version_of('sapien')} on {device}"

    @property
    def instruction(self) -> str:
        """Text of the task, which some tasks change during an episode."""
        return str(self._env.unwrapped.get_language_instruction())

    def reset(self, init_state: int, seed: int) -> str:
        """Starts an episode and returns a hash of its initial state.

        Args:
            init_state: robot pose times number of object settings, plus object setting.
            seed: unused; scenarios place nothing at random.

        Raises:
            ValueError: the scenario has no such state.
        """
        del seed
        if not 0 <= init_state < self._scenario.num_episodes:
            raise ValueError(
                f"initial state {init_state} of {self._scenario.name}; there are "
                f"0..{self._scenario.num_episodes - 1}"
            )
        robot, placed = divmod(init_state, len(self._scenario.objects))
        if self._robot is not None and (self._spec.fresh_env or robot != self._robot):
            self._env.close()
            self._env = self._made()
        self._robot = robot
        name, value = self._scenario.objects[placed]
        options: dict[str, Any] = {"obj_init_options": {name: value}}
        if self._scenario.robots:
            pose = np.asarray(self._scenario.robots[robot], np.float64)
            options["robot_init_options"] = {"init_xy": pose[:2], "init_rot_quat": pose[2:]}
        self._observation, _ = self._env.reset(options=options)
        state = np.asarray(self._env.unwrapped.get_state(), np.float64)
        return hashlib.sha256(state.tobytes()).hexdigest()[:16]

    def observe(self) -> dict[str, Any]:
        """Returns the row's camera, and tcp and base as xyz (m), quaternion wxyz in the world."""
        seen = self._observation
        view = self._spec.client.views[0]
        # the observation of the public drawer tasks has no pose of the tool
        tcp = self._env.unwrapped.tcp.pose
        return {
            view.source: np.asarray(seen["image"][view.camera]["rgb"]),
            "tcp_pose": np.concatenate((tcp.p, tcp.q)),
            "base_pose": np.asarray(seen["agent"]["base_pose"]),
        }

    def step(self, action: ArrayLike) -> bool:
        """Carries out xyz (m), euler xyz (rad), gripper [7]; returns True when solved."""
        self._observation, _, done, _, _ = self._env.step(np.asarray(action))
        return bool(done)

    def score(self) -> float | None:
        """Returns None: an episode has success or failure only."""
        return None

    def close(self) -> None:
        """Frees the simulation."""
        self._env.close()

    def _made(self) -> Any:
        # a copy: ManiSkill2 writes into camera_cfgs
        return self._gym.make(self._scenario.env, obs_mode="rgbd", **copy.deepcopy(self._kwargs))


def _as_made(value: Any) -> Any:
    """Returns an argument of `make`; ManiSkill2 takes a tuple of names for a name."""
    if isinstance(value, tuple):
        return [_as_made(part) for part in value]
    if not isinstance(value, str) or PLACEHOLDER not in value:
        return value
    folder = preflight.required_folder("SIMPLER_DIR", "the folder of ManiSkill2_real2sim")
    return value.replace(PLACEHOLDER, os.path.abspath(folder))


def _maniskill(robot: str) -> Any:
    """Imports ManiSkill2, lets `robot` take absolute poses, and returns gymnasium."""
    gym, _, scenes, controllers, sapien = preflight.modules_of(
        "simpler",
        "gymnasium",
        "mani_skill2_real2sim.envs",  # registers the tasks
        "mani_skill2_real2sim.envs.custom_scenes.base_env",
        "mani_skill2_real2sim.agents.controllers",
        "sapien.core",
    )
    robots = scenes.CustomSceneEnv.SUPPORTED_ROBOTS
    if not getattr(robots[robot], "takes_absolute_poses", False):
        robots[robot] = _with_absolute_poses(robots[robot], controllers, sapien.Pose)
    return gym


def _with_absolute_poses(agent: Any, controllers: Any, pose: Any) -> Any:
    """Returns the class of a robot with the control modes of `ABSOLUTE_MODES` added."""

    def target(_: Any, __: Any, action: NDArray[np.float64]) -> Any:
        quaternion = matrix_to_quat_xyzw(euler_xyz_to_matrix(action[3:6]))
        return pose(action[:3], quat_xyzw_to_wxyz(quaternion))

    controller = type(
        "EulerPoseController", (controllers.PDEEPoseController,), {"compute_target_pose": target}
    )
    row = type(
        "EulerPoseControllerConfig",
        (controllers.PDEEPoseControllerConfig,),
        {"controller_cls": controller},
    )
    public = type(agent.get_default_config())

    def modes(config: Any) -> dict[str, Any]:
        made = public.controllers.fget(config)
        for absolute, step in ABSOLUTE_MODES.items():
            for name in [name for name in made if name.startswith(step + "_gripper")]:
                arm = {**vars(made[name]["arm"]), "frame": "base", "use_delta": False}
                made[absolute + name[len(step) :]] = {**made[name], "arm": row(**arm)}
        return made

    config = type(public.__name__, (public,), {"controllers": property(modes)})
    added = {"get_default_config": classmethod(lambda _: config()), "takes_absolute_poses": True}
    return type(agent.__name__, (agent,), added)
