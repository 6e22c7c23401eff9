"""`VLABench.envs.load_env` at 47b04bf and what it returns, with a track's file.

Arguments, their types and what is returned are those of the source; there is no physics.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

TRACK = "track_1_in_distribution"
# series -> its tasks, some of those of VLABench/configs/__init__.py
SERIES = {
    "select_poker_series": ["select_poker", "select_poker_spatial", "select_nth_largest_poker"],
    "select_toy_series": ["select_toy", "select_toy_spatial"],
    "add_condiment_series": ["add_condiment", "add_condiment_spatial"],
}
_TASK_CONFIG = {
    "default": {"engine": {"option": {"impratio": 10}}, "evaluation": {}},
    "select_poker_series": {"task": {}, "evaluation": {"max_episode_length": 3}},
    "add_condiment_series": {"task": {}},
}


class Environment:
    """Joints creep towards their targets, half of the way a step; x > 1 solves the task."""

    def __init__(self, log: list[tuple[str, Any]], task: str, scene: float) -> None:
        self._log, self._joints, self._target = log, np.zeros(7), np.zeros(9)
        self.physics = SimpleNamespace(get_state=lambda: np.array([scene]))
        self.robot = SimpleNamespace(get_qpos_from_ee_pos=self._inverse)
        inner = SimpleNamespace(get_qpos=lambda _: self._joints)
        self.task = SimpleNamespace(get_instruction=lambda: f"do {task}", robot=inner)

    def reset(self) -> None:
        self._log.append(("reset", None))

    def get_observation(self) -> dict[str, Any]:
        pictures = np.stack([np.full((480, 480, 3), index, np.uint8) for index in range(4)])
        return {
            "q_state": np.zeros(7),
            "rgb": pictures,
            "depth": np.zeros((4, 480, 480)),
            "ee_state": np.array([0.0, -0.4, 0.78, 1, 0, 0, 0, 1.0]),
            "grasped_obj_name": ([], []),
        }

    def step(self, action: Any = None) -> Any:
        assert action.shape == (9,)  # what MuJoCo's ctrl takes
        self._log.append(("step", action[7:].tolist()))
        self._joints = (self._joints + action[:7]) / 2
        solved = bool(self._joints[0] > 1)
        return SimpleNamespace(last=lambda: solved)

    def get_task_progress(self) -> float:
        return 0.5

    def close(self) -> None:
        self._log.append(("close", None))

    def _inverse(
        self, physics: Any, pos: Any, quat: Any = None, inplace: bool = False
    ) -> tuple[bool, np.ndarray]:
        assert physics is self.physics
        assert not inplace
        assert (len(pos), len(quat)) == (3, 4)
        return True, np.concatenate((pos, quat))


def checkout(folder: Path) -> None:
    """Writes a track of three tasks with two scenes each, and the configuration of tasks."""
    path = folder / "configs" / "evaluation" / "tracks"
    path.mkdir(parents=True)
    tasks = ("select_toy", "add_condiment", "select_poker")
    track = {name: [{"scene": 1}, {"scene": 2}] for name in tasks}
    (path / f"{TRACK}.json").write_text(json.dumps(track))
    (folder / "configs" / "task_config.json").write_text(json.dumps(_TASK_CONFIG))


def modules(log: list[tuple[str, Any]]) -> dict[str, ModuleType]:
    """The packages under `VLABench` that are imported."""
    names = ("robots", "tasks", "envs", "configs", "utils", "utils.utils")
    made: dict[str, Any] = {f"VLABench.{name}": ModuleType(name) for name in names}
    made["VLABench"] = ModuleType("VLABench")

    def load_env(
        task: str,
        robot: str = "franka",
        config: dict[str, Any] | None = None,
        time_limit: float = float("inf"),
        reset_wait_step: int = 10,
        episode_config: dict[str, Any] | None = None,
        random_init: bool = False,
        **kwargs: Any,
    ) -> Environment:
        assert (robot, config, time_limit, reset_wait_step) == ("franka", None, float("inf"), 10)
        unknown = set(kwargs) - {"eval", "use_llm", "xml_file", "run_mode"}
        assert not unknown, f"unexpected keyword argument of the task: {unknown}"
        assert any(task in tasks for tasks in SERIES.values())
        assert episode_config is not None
        log.append(("load_env", (task, {**kwargs, "random_init": random_init})))
        made = Environment(log, task, float(episode_config["scene"]))
        made.reset()
        return made

    made["VLABench.envs"].load_env = load_env
    made["VLABench.configs"].name2config = SERIES
    made["VLABench.utils.utils"].euler_to_quaternion = lambda roll, pitch, yaw: (
        1.0,
        roll,
        pitch,
        yaw,
    )
    return made
