"""CALVIN: sequences of five subtasks in one scene, judged by the benchmark's own oracle.

An episode is a sequence, and is solved when all of its subtasks are; it ends at the first subtask
that runs out of steps. The simulator is not reset between subtasks. The official list of sequences
with their initial states lies in calvin_sequences.json: the official code needs minutes, torch and
4 GB of packages for the same list at each start. The simulator itself needs neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.files import TEXT, FileError, fields, integer, listing, parse_json, read_bytes
from eval.tasks.spec import TaskSpec

from . import preflight

NUM_SEQUENCES = 1000
SEQUENCES = Path(__file__).with_name("calvin_sequences.json")
SEQUENCES_SHA256 = "027e9ef627922da4b3f8812d972fcb63175f7f722cae91fd66e2301608fb72c9"
_NUMBER = {"type": "number"}
_FORM = fields(
    made_by=TEXT,
    subtasks=listing(TEXT, 34),
    robot=listing(_NUMBER, 15),
    scenes=listing(listing(_NUMBER, 24)),
    sequences=listing(listing(integer(0, 10**4), 6), NUM_SEQUENCES),
)
# Scene D with the evaluation's cameras, from calvin_env's own configuration.
_SEED = 0  # of Python's and numpy's generators, before anything is built
_COMPOSED = "config_data_collection"
_OVERRIDES = ("scene=calvin_scene_D", "robot=panda_longer_finger", "cameras=static_and_gripper")
_TASKS = "callbacks/rollout/tasks/new_playtable_tasks.yaml"
_ANNOTATIONS = "annotations/new_playtable_validation.yaml"
_CURLY_APOSTROPHE = chr(0x2019)


class CalvinEnv:
    """The adapter of CALVIN's scene D.

    Args:
        spec: row of the task table, with benchmark "calvin"; its step limit is a subtask's.
        task_id: 0; an initial state is the index of a sequence.

    Raises:
        SimulatorSetupError: CALVIN is missing, or CALVIN_DATASET is set and names no folder.
    """

    num_parts = 5  # subtasks in a row, each with the row's step limit

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        if task_id != 0:
            raise ValueError(
                f"task {task_id} of CALVIN; there is only 0, initial states are the sequences"
            )
        self._spec = spec
        self._api = _Calvin()
        self._env = self._api.env
        self._sequences = load_sequences()
        device = preflight.current_gl_renderer()  # of PyBullet's EGL plugin
        self.renderer_name = f"PyBullet {preflight.version_of('pybullet')} on {device}"
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
        subtasks, robot, scene = self._sequences[init_state]
        self._observation = self._env.reset(robot_obs=robot, scene_obs=scene)
        self._subtasks = subtasks
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


def load_sequences() -> list[tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]]:
    """Returns subtasks, `robot_obs` [15] and `scene_obs` [24] of each official sequence.

    Raises:
        FileError: the file is not the one that the official code's list was written to.
    """
    text = read_bytes(SEQUENCES)
    if hashlib.sha256(text).hexdigest() != SEQUENCES_SHA256:
        raise FileError(f"{SEQUENCES} has been changed; git checkout restores it")
    table = parse_json(text, _FORM, str(SEQUENCES))
    robot, names = np.array(table["robot"], np.float64), table["subtasks"]
    scenes = np.array(table["scenes"], np.float64)
    return [
        (tuple(names[index] for index in subtasks), robot, scenes[scene])
        for scene, *subtasks in table["sequences"]
    ]


class _Calvin:
    """The parts of the CALVIN packages that the adapter uses."""

    def __init__(self) -> None:
        with _kept_excepthook():
            agent, package, table, hydra, config = preflight.modules_of(
                "calvin",
                "calvin_agent",
                "calvin_env",
                "calvin_env.envs.play_table_env",
                "hydra",
                "omegaconf",
            )
        random.seed(_SEED)
        np.random.seed(_SEED)  # noqa: NPY002  # the generator that the official evaluation seeds
        load, folder = config.OmegaConf.load, Path(agent.__file__).resolve().parents[1] / "conf"
        self.oracle: Any = hydra.utils.instantiate(load(folder / _TASKS))
        self.annotations: Any = load(folder / _ANNOTATIONS)
        if os.environ.get("CALVIN_DATASET"):
            dataset = preflight.required_folder("CALVIN_DATASET", "the folder of task_ABC_D")
            self.env: Any = table.get_env(Path(dataset) / "validation", show_gui=False)
            return
        conf = Path(package.__file__).resolve().parents[1] / "conf"
        with hydra.initialize_config_dir(config_dir=str(conf)):
            composed = hydra.compose(_COMPOSED, overrides=list(_OVERRIDES))
        self.env = hydra.utils.instantiate(
            composed.env, show_gui=False, use_vr=False, use_scene_info=True
        )


@contextlib.contextmanager
def _kept_excepthook() -> Iterator[None]:
    """Puts `sys.excepthook` back, which calvin_env replaces when it is imported."""
    hook = sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = hook
