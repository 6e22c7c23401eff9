"""LIBERO recordings for tests: a simulator of a few lines, and recordings made in the real one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eval.recording.libero_absolute import REPLAY_SEED, ConversionHost
from eval.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from eval.simulators.expert import ScriptedExpert
from eval.simulators.plans import plan_for
from eval.tasks.table import TASKS, TaskSpec, View
from tests.eval.fakes import POINTING_DOWN

# robosuite's OSC_POSE: what an action of 1 moves (m) and turns (rad) in a control step
MOVES, TURNS = 0.05, 0.5
SETTLED = 10  # control steps that are recorded after success
SUITE = "libero_goal"
SPECS = {SUITE: dataclasses.replace(TASKS[SUITE], image_size=8, step_limit=30, fresh_env=False)}


class DeltaEnv:
    """The hand follows a command at once; solved where x is at least 0.1 m."""

    instruction = "push the plate"
    offset = 0.0  # what absolute commands miss by

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        self.made_for = (spec.suite, task_id)

    def start_from(self, state: Any, seed: int, *, relative: bool = False) -> str:
        assert seed == REPLAY_SEED
        self._relative = relative
        self._goal = (np.array(state, np.float64), POINTING_DOWN)
        return ""

    def step(self, command: Any) -> bool:
        position, matrix = self._goal
        if self._relative:
            position = position + MOVES * np.clip(command[:3], -1, 1)
            if np.any(command[3:6]):
                matrix = axis_angle_to_matrix(TURNS * np.clip(command[3:6], -1, 1)) @ matrix
        else:
            position = command[:3].astype(np.float64) - [self.offset, 0, 0]
            matrix = axis_angle_to_matrix(command[3:6])
        self._goal = (position, matrix)
        return bool(position[0] >= 0.1 - 1e-6)

    def goal(self) -> tuple[np.ndarray, np.ndarray]:
        return self._goal

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        return self._goal

    def image(self, view: View) -> np.ndarray:
        shade = round(1000 * self._goal[0][0]) + 100 * (view.name == "wrist")
        return np.full((8, 8, 3), shade, np.uint8)

    def close(self) -> None:
        pass


class OffEnv(DeltaEnv):
    """A `DeltaEnv` whose absolute commands end beside their targets."""

    offset = 0.02


def index_of(suite: str, task: str) -> int:
    """The number at the end of a made-up task's name."""
    return int(task.rsplit("_", 1)[1])


def write_libero_file(path: Path, demos: list[tuple[Any, Any]]) -> None:
    """A file as LIBERO publishes them, of (states [T, S], actions [T, 7]) of each demo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = f"somewhere/bddl_files/{path.parent.name}/{path.stem}.bddl"
        data.attrs["problem_info"] = '{"language_instruction": ["push", "the", "plate"]}'
        data.attrs["num_demos"] = len(demos)
        for i, (states, actions) in enumerate(demos):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(actions)
            demo.create_dataset("states", data=states)
            demo.create_dataset("actions", data=actions)
            demo.create_dataset("obs/agentview_rgb", data=np.zeros((len(actions), 2, 2, 3), "u1"))


class DrivingHost(ConversionHost):
    """Makes recordings as LIBERO's are: relative actions in the real simulator, by the expert."""

    def record(self, suite: str, task: str, init_state: int) -> dict[str, np.ndarray]:
        """Drives an episode; the hand also turns to and fro about the vertical while it moves.

        Returns:
            states [T, S], actions [T, 7], and for each action the pose before it and the
            controller's goal after it: position, matrix, goal_position, goal_matrix.
        """
        task_id = self._task_index(suite, task)
        env = self._open_env(self._specs[suite], task_id)
        env.start_from(env._states[init_state], REPLAY_SEED, relative=True)
        # LIBERO's recordings begin before the simulation has settled
        rows: dict[str, list[Any]] = {"states": [env._states[init_state]], "actions": []}
        rows |= {n: [] for n in ("position", "matrix", "goal_position", "goal_matrix")}
        scene = env.scene()
        expert = ScriptedExpert(
            plan_for(suite, task_id),
            scene,
            wander=0.0,
            rng=np.random.default_rng(0),
            rotation="contiguous",
        )
        upright, solved_for = scene.matrix, 0
        for step in range(200):
            row = expert.act(scene)
            swing = axis_angle_to_matrix([0, 0, 0.1 * np.sin(step / 5)]) @ upright
            turn = matrix_to_axis_angle(swing @ scene.matrix.T)
            move = row[:3] - scene.position
            action = np.clip(np.concatenate((move / MOVES, turn / TURNS)), -1, 1)
            action = np.append(action, 1.0 if row[9] > 0.5 else -1.0)
            if step % 10 == 9:  # an operator who does nothing
                action[:6] = 0.0
            # what was measured is one step of the physics old; an action counts from now
            env._env.robots[0].controller.update(force=True)
            position, matrix = env.pose()
            rows["position"].append(position)
            rows["matrix"].append(matrix)
            rows["actions"].append(action)
            solved_for = solved_for + 1 if env.step(action) else 0
            position, matrix = env.goal()
            rows["goal_position"].append(position)
            rows["goal_matrix"].append(matrix)
            # Just solved, the bowl still rocks: that a replay ends solved would be up to rounding.
            if solved_for == SETTLED:
                break
            rows["states"].append(np.asarray(env._env.get_sim_state()))
            scene = env.scene()
        env.close()
        return {name: np.stack(values) for name, values in rows.items()}
