"""CALVIN: sequences of five subtasks in one scene, judged by the benchmark's own oracle.

An episode is a sequence, and is solved when all of its subtasks are; it ends at the first subtask
that runs out of steps. The simulator is not reset between subtasks. Not run here: CALVIN and its
validation data are not installed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.tasks.profiles import View
from eval.tasks.spec import TaskSpec

from . import preflight

NUM_SEQUENCES = 1000
_TASKS = "callbacks/rollout/tasks/new_playtable_tasks.yaml"
_ANNOTATIONS = "annotations/new_playtable_validation.yaml"
_CURLY_APOSTROPHE = chr(0x2019)


class CalvinEnv:
    """The adapter of CALVIN's scene D.

    Args:
        spec: row of the task table, with benchmark "calvin"; its step limit is a subtask's.
        task_id: 0; an initial state is the index of a sequence.

    Raises:
        SimulatorSetupError: CALVIN is missing, or CALVIN_DATASET names no data set.
    """

    num_parts = 5  # subtasks in a row, each with the row's step limit

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        if task_id != 0:
            raise ValueError(
                f"task {task_id} of CALVIN; there is only 0, initial states are the sequences"
            )
        self._spec = spec
        folder = preflight.required_folder("CALVIN_DATASET", "the folder of task_ABC_D")
        self._api = _Calvin(Path(folder) / "validation")
        self._env = self._api.env
        self.renderer_name = f"PyBullet {preflight.version_of('pybullet')}"
        self._subtasks: tuple[str, ...] = ()
        self._observation: Any = None
        self._start_info: Any = None
        self._steps = 0
        self.solved = 0
        self.failed = False

    @property
    def instruction(self) -> str:
        """First annotation of the present subtask, its first line, with a straight apostrophe."""
        index = min(self.solved, len(self._subtasks) - 1) if self._subtasks else 0
        if not self._subtasks:
            return ""
        text = str(self._api.annotations[self._subtasks[index]][0])
        return text.split("\n")[0].replace(_CURLY_APOSTROPHE, "'")

    def reset(self, init_state: int, seed: int) -> str:
        """Starts sequence `init_state` and returns a hash of its initial state.

        `seed` is unused: the official initial states place nothing at random.
        """
        del seed
        condition, subtasks = self._api.sequences[init_state]
        robot, scene = self._api.state_for(condition)
        self._observation = self._env.reset(robot_obs=robot, scene_obs=scene)
        self._subtasks = tuple(subtasks)
        self.solved, self.failed, self._steps = 0, False, 0
        self._start_info = self._env.get_info()
        state = np.concatenate((np.ravel(robot), np.ravel(scene))).astype(np.float64)
        return hashlib.sha256(state.tobytes()).hexdigest()[:16]

    def observe(self) -> dict[str, Any]:
        """Returns both cameras, and `robot_obs` [15]."""
        seen = self._observation
        return {
            "rgb_static": np.asarray(seen["rgb_obs"]["rgb_static"]),
            "rgb_gripper": np.asarray(seen["rgb_obs"]["rgb_gripper"]),
            "robot_obs": np.asarray(seen["robot_obs"]),
        }

    def image(self, view: View) -> NDArray[np.uint8]:
        """Returns one view uint8[H, W, 3], turned as its row says."""
        return view.turned(self.observe()[view.source])

    def step(self, action: ArrayLike) -> bool:
        """Carries out xyz (m), quaternion xyzw, gripper [8]; returns True after the last subtask.

        Raises:
            ValueError: the episode is over.
        """
        if self.failed or self.solved == len(self._subtasks):
            raise ValueError("the sequence is over; reset starts another")
        values = np.asarray(action, np.float64)
        command = (values[:3], values[3:7], int(values[7]))
        self._observation, _, _, info = self._env.step(command)
        self._steps += 1
        present = {self._subtasks[self.solved]}
        if self._api.oracle.get_task_info_for_set(self._start_info, info, present):
            self.solved, self._steps = self.solved + 1, 0
            self._start_info = self._env.get_info()
        elif self._steps >= self._spec.step_limit:
            self.failed = True
        return self.solved == len(self._subtasks)

    def score(self) -> float | None:
        """Subtasks solved in a row."""
        return float(self.solved)

    def close(self) -> None:
        """Frees the simulation."""
        self._env.close()


class _Calvin:
    """The parts of the CALVIN packages that the adapter uses."""

    def __init__(self, validation: Path) -> None:
        agent, sequences, states, table, hydra, config, lightning = preflight.modules_of(
            "calvin",
            "calvin_agent",
            "calvin_agent.evaluation.multistep_sequences",
            "calvin_agent.evaluation.utils",
            "calvin_env.envs.play_table_env",
            "hydra.utils",
            "omegaconf",
            "pytorch_lightning",
        )
        lightning.seed_everything(0, workers=True)  # as the official evaluation does first
        load, folder = config.OmegaConf.load, Path(agent.__file__).resolve().parents[1] / "conf"
        self.oracle: Any = hydra.instantiate(load(folder / _TASKS))
        self.annotations: Any = load(folder / _ANNOTATIONS)
        self.sequences: Any = sequences.get_sequences(NUM_SEQUENCES)
        self.state_for: Any = states.get_env_state_for_initial_condition
        self.env: Any = table.get_env(validation, show_gui=False)
