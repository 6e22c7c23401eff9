"""VLABench, tracks 1 to 4, with the tasks and scenes of each track's own file.

No episode was run: its assets lie on a drive that could not be reached.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.files import OBJECT, listing, mapping, read_json
from eval.tasks.spec import TaskSpec

from . import preflight

# As in the benchmark's evaluator: simulator steps of one action, and the distance of the joints
# (rad) from their targets at which it ends earlier.
MAX_SUBSTEPS = 10
TOLERANCE = 1e-2


class VlabenchEnv:
    """The adapter of one task of a track; it builds a simulator for each episode.

    Args:
        spec: row of the task table, with benchmark "vlabench"; its suite is the track.
        task_id: index of the task in the track's file.

    Raises:
        SimulatorSetupError: VLABench is missing, or VLABENCH_ROOT does not name it.
        ValueError: the track has no such task.
    """

    num_parts = 1

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        self._spec = spec
        device = preflight.require_headless_gl()
        root = preflight.required_folder("VLABENCH_ROOT", "the package folder VLABench/VLABench")
        path = Path(root, "configs", "evaluation", "tracks", spec.suite + ".json")
        track = read_json(path, mapping(listing({})))  # task -> scenes
        if not 0 <= task_id < len(track):
            raise ValueError(f"task {task_id} of {spec.suite}; {path} has 0..{len(track) - 1}")
        self._task, self._scenes = list(track.items())[task_id]
        # The first two register what load_env looks up.
        _, _, envs, tools, configs = preflight.modules_of(
            "vlabench",
            "VLABench.robots",
            "VLABench.tasks",
            "VLABench.envs",
            "VLABench.utils.utils",
            "VLABench.configs",
        )
        self._load_env, self._to_quaternion = envs.load_env, tools.euler_to_quaternion
        self._env: Any = None
        self._limit = spec.step_limit
        if spec.registered_limits:
            own = _registered_limit(root, self._task, configs.name2config)
            self._limit = min(own or self._limit, self._limit)
        self._steps = 0
        self.instruction = ""
        self.renderer_name = f"MuJoCo {preflight.version_of('mujoco')} on {device}"

    @property
    def failed(self) -> bool:
        """True once the task's own limit is reached, which a row may have set aside."""
        return self._steps >= self._limit

    def reset(self, init_state: int, seed: int) -> str:
        """Builds scene `init_state` and returns a hash of its initial state; `seed` is unused.

        Raises:
            ValueError: the track's file has no such scene.
        """
        del seed
        if not 0 <= init_state < len(self._scenes):
            raise ValueError(
                f"initial state {init_state} of {self._task}; there are 0..{len(self._scenes) - 1}"
            )
        self.close()
        self._steps = 0
        self._env = self._load_env(
            self._task,
            episode_config=self._scenes[init_state],
            random_init=False,
            eval=False,
            run_mode="eval",
        )
        self._env.reset()
        self.instruction = str(self._env.task.get_instruction())
        state = np.asarray(self._env.physics.get_state(), np.float64)
        return hashlib.sha256(state.tobytes()).hexdigest()[:16]

    def observe(self) -> dict[str, Any]:
        """Returns cameras `rgb` [n, H, W, 3] and `ee_state` [8]: xyz (m, world), wxyz, gripper."""
        seen = self._env.get_observation()
        return {"rgb": np.asarray(seen["rgb"]), "ee_state": np.array(seen["ee_state"])}

    def step(self, action: ArrayLike) -> bool:
        """Carries out xyz (m, world), euler xyz (rad), fingers (m) [8]; True when solved."""
        self._steps += 1
        values = np.asarray(action, np.float64)
        robot, physics = self._env.robot, self._env.physics
        _, joints = robot.get_qpos_from_ee_pos(
            physics=physics, pos=values[:3], quat=self._to_quaternion(*values[3:6])
        )
        command = np.concatenate((np.ravel(joints), values[6:8]))
        for _ in range(MAX_SUBSTEPS):
            if self._env.step(command).last():
                return True
            reached = np.ravel(self._env.task.robot.get_qpos(physics))
            if np.max(np.abs(reached[:7] - command[:7])) < TOLERANCE:
                break
        return False

    def score(self) -> float | None:
        """Returns the benchmark's own progress of the episode so far, 0 to 100 %."""
        return 100 * float(self._env.get_task_progress())

    def close(self) -> None:
        """Frees the simulation, where there is one."""
        if self._env is not None:
            self._env.close()
            self._env = None


def _registered_limit(root: str, task: str, series: Any) -> int | None:
    """Returns the steps that VLABench's own evaluator gives a task, None where it names none.

    Args:
        root: the package folder.
        task: name of the task.
        series: series -> its tasks.
    """
    configured = read_json(Path(root, "configs", "task_config.json"), mapping(OBJECT))
    name = next((name for name, tasks in series.items() if task in tasks), task)
    limit = configured.get(name, {}).get("evaluation", {}).get("max_episode_length")
    return None if limit is None else int(limit)
