"""The calls of calvin_env, calvin_agent, hydra, omegaconf and pytorch_lightning that are used."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

SEQUENCE = ("open_drawer", "lift_red_block_table", "turn_on_led", "close_drawer", "push_into")
ANNOTATIONS = {name: [f"please {name}\nsecond line", "other words"] for name in SEQUENCE}
ANNOTATIONS["turn_on_led"] = ["press the button, so that it" + chr(0x2019) + "s on"]


class Environment:
    """Its info holds the way of the hand in x; one metre solves a subtask."""

    def __init__(self, log: list[tuple[str, Any]]) -> None:
        self._log, self._x = log, 0.0

    def reset(self, robot_obs: Any, scene_obs: Any) -> dict[str, Any]:
        self._log.append(("reset", (robot_obs.tolist(), scene_obs.tolist())))
        self._x = 0.0
        return self._observation()

    def get_info(self) -> dict[str, float]:
        return {"x": self._x}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, float]]:
        position, quaternion, gripper = action
        assert (position.shape, quaternion.shape) == ((3,), (4,))
        assert isinstance(gripper, int)
        assert gripper in (-1, 1)  # as calvin_env's robot does
        self._log.append(("step", gripper))
        self._x = float(position[0])
        return self._observation(), 0.0, False, self.get_info()

    def close(self) -> None:
        self._log.append(("close", None))

    def _observation(self) -> dict[str, Any]:
        pictures = {
            "rgb_static": np.zeros((200, 200, 3), np.uint8),
            "rgb_gripper": np.ones((84, 84, 3), np.uint8),
        }
        return {"rgb_obs": pictures, "depth_obs": {}, "robot_obs": np.arange(15.0) + self._x}


class Oracle:
    """Solved where the hand has gone a metre since the subtask began."""

    def get_task_info_for_set(self, start: Any, now: Any, tasks: set[str]) -> set[str]:
        return tasks if now["x"] - start["x"] >= 1 else set()


def modules(log: list[tuple[str, Any]], folder: str) -> dict[str, ModuleType]:
    """Returns the modules that are imported; `folder` stands for the checkout of calvin_agent."""
    made: dict[str, Any] = {
        name: ModuleType(name)
        for name in (
            "calvin_agent",
            "calvin_agent.evaluation",
            "calvin_agent.evaluation.multistep_sequences",
            "calvin_agent.evaluation.utils",
            "calvin_env",
            "calvin_env.envs",
            "calvin_env.envs.play_table_env",
            "hydra",
            "hydra.utils",
            "omegaconf",
            "pytorch_lightning",
        )
    }
    made["calvin_agent"].__file__ = f"{folder}/calvin_models/calvin_agent/__init__.py"
    made["calvin_agent.evaluation.multistep_sequences"].get_sequences = lambda n: [
        ({"led": index}, SEQUENCE) for index in range(n)
    ]
    made["calvin_agent.evaluation.utils"].get_env_state_for_initial_condition = lambda c: (
        np.full(15, float(c["led"])),
        np.zeros(24),
    )
    made["calvin_env.envs.play_table_env"].get_env = lambda path, show_gui: (
        log.append(("get_env", (path.name, show_gui))) or Environment(log)
    )
    made["hydra"].utils = made["hydra.utils"]
    made["hydra.utils"].instantiate = lambda _: Oracle()
    loaded = {"new_playtable_tasks.yaml": {}, "new_playtable_validation.yaml": ANNOTATIONS}
    made["omegaconf"].OmegaConf = type(
        "OmegaConf", (), {"load": staticmethod(lambda path: loaded[path.name])}
    )
    made["pytorch_lightning"].seed_everything = lambda seed, workers: log.append(("seed", seed))
    return made
