"""LIBERO under absolute end-effector control, as in the authors' client.

Ten control steps at rest in the controller's delta mode, then absolute OSC_POSE. All poses are the
controller's (`ee_pos`, `ee_ori_mat`); the observed `robot0_eef_quat` differs from them by a turn of
90 degrees and must not be used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.disturbances import objects
from eval.disturbances.scene import Disturber, LoadedScene
from eval.rotations import matrix_to_axis_angle
from eval.tasks import task_files
from eval.tasks.profiles import View
from eval.tasks.spec import TaskSpec

from . import preflight
from .cameras import CameraRenderer
from .expert import Scene

_COLLISION_GROUP = 0  # of robosuite's shapes
_HORIZON = 1000  # control steps that robosuite allows by itself
_FREE = 7  # numbers of a free joint's position: xyz, quaternion wxyz
# Open gripper and no motion, in the delta mode of the settling steps.
_REST = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


class LiberoEnv:
    """The adapter of one LIBERO task; its process must not load TensorFlow.

    Args:
        spec: row of the task table, with benchmark "libero".
        task_id: index of the task in the suite's default order.

    Raises:
        SimulatorSetupError: LIBERO, its MuJoCo or headless OpenGL is missing or unsuitable.
    """

    num_parts = 1
    failed = False  # the step limit alone ends an episode early

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        preflight.refuse_modules(("tensorflow",))
        preflight.check_mujoco(preflight.installed("mujoco"))
        self.renderer_name = preflight.require_headless_gl()
        self._spec = spec
        self._task_id = task_id
        suite = _load_suite(spec.suite)
        task, folder = _task(suite, spec.suite, task_id)
        self.instruction = _text(spec, task, folder)["text"]
        self._bddl = str(folder / task.problem_folder / task.bddl_file)
        with _quiet():
            self._states = np.asarray(suite.get_task_init_states(task_id), np.float64)
        self._late: deque[NDArray[Any]] = deque()  # actions that are still to be carried out
        self._env, self._renderer, self._disturber = self._build()
        self._used = False

    def reset(self, init_state: int, seed: int) -> str:
        """Starts an episode and returns a hash of its initial state.

        Args:
            init_state: index of an initial state, or -1 to let LIBERO place the objects. Behind the
                official ones, the held-out official ones follow again.
            seed: of LIBERO's placement, which fixtures follow even from an official state.
        """
        if init_state >= len(self._states) and self._spec.held_out is not None:
            first = self._spec.held_out
            init_state = first + (init_state - first) % (len(self._states) - first)
        state = None if init_state < 0 else self._states[init_state]
        return self.start_from(state, seed, index=init_state)

    def start_from(
        self, state: ArrayLike | None, seed: int, *, relative: bool = False, index: int = -1
    ) -> str:
        """Starts an episode from a state of the simulator or from LIBERO's own placement.

        Args:
            state: as `get_sim_state` flattens it, or None.
            seed: as in `reset`.
            relative: leave the controller in the delta mode of LIBERO's recordings.
            index: of the state, from which the row's disturbance is drawn.

        Returns:
            A hash of the initial state.
        """
        if self._used and self._spec.fresh_env:
            self.close()
            self._env, self._renderer, self._disturber = self._build()
        self._used = True
        self._env.seed(seed)
        self._env.reset()
        for robot in self._env.robots:
            # robosuite integrates gripper commands and does not reset the integral.
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        scene = self._loaded_scene()
        if state is not None:
            self._env.set_init_state(
                objects.state_with(scene.model, scene.data, scene.things, state)
            )
        self._displace(np.random.default_rng(seed))
        self._disturber.disturb(scene, index, seed)
        initial = np.asarray(self._env.get_sim_state(), np.float64)
        for _ in range(self._spec.settle_steps):
            self._env.step(_REST)
        for robot in self._env.robots:
            robot.controller.use_delta = relative
        delay = _amount(self._spec, "delay")
        self._late = deque([self._rest(relative)] * delay if delay else ())
        return hashlib.sha256(initial.tobytes()).hexdigest()[:16]

    def step(self, action: ArrayLike) -> bool:
        """Carries out an action [7] and returns True when the task is solved.

        It is xyz (m), axis-angle (rad) and gripper -1 or +1; all between -1 and 1 in relative mode.
        """
        self._late.append(np.asarray(action))
        return bool(self._env.step(self._late.popleft())[2])

    def pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measured position [3] (m) and matrix [3, 3] of the controller."""
        controller = self._env.robots[0].controller
        return np.array(controller.ee_pos), np.array(controller.ee_ori_mat)

    def goal(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position [3] (m) and matrix [3, 3] of the controller's present goal."""
        controller = self._env.robots[0].controller
        return np.array(controller.goal_pos), np.array(controller.goal_ori)

    def scene(self) -> Scene:
        """Ground truth for the scripted expert."""
        position, matrix = self.pose()
        bodies, data = self._env.env.obj_body_id, self._env.sim.data
        return Scene(
            position=position,
            matrix=matrix,
            objects={name: np.array(data.body_xpos[body]) for name, body in bodies.items()},
        )

    def policy_row(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns an expert's row [10], which is one of the policy's already."""
        return row

    def observe(self) -> dict[str, Any]:
        """Returns all views, bottom row first as in the simulator, and the controller's pose."""
        position, matrix = self.pose()
        views = {view.source: self._rendered(view) for view in self._spec.client.views}
        return {**views, "ee_pos": position, "ee_mat": matrix}

    def image(self, view: View) -> NDArray[np.uint8]:
        """Returns one view uint8[S, S, 3], turned as its row says."""
        return view.turned(self._rendered(view))

    def _rendered(self, view: View) -> NDArray[np.uint8]:
        return self._renderer.render(self._env.sim.data._data, view.camera)[::-1]

    def score(self) -> float | None:
        """Returns None: an episode has success or failure only."""
        return None

    def close(self) -> None:
        """Frees the simulation and its OpenGL context."""
        self._renderer.close()
        self._env.close()

    def _displace(self, rng: np.random.Generator) -> None:
        """Moves the first object of interest, the one to pick up, as far as the row says."""
        limit = self._spec.displacement
        if limit == 0.0:
            return
        joint = self._env.env.objects_dict[self._env.obj_of_interest[0]].joints[0]
        pose = np.array(self._env.sim.data.get_joint_qpos(joint))  # xyz, quaternion wxyz
        pose[:2] += rng.uniform(-limit, limit, 2)
        self._env.sim.data.set_joint_qpos(joint, pose)
        self._env.sim.forward()

    def _rest(self, relative: bool) -> NDArray[np.float64]:
        """Returns the action that keeps the hand at its present goal, and open."""
        if relative:
            return _REST
        position, matrix = self.goal()
        return np.concatenate((position, matrix_to_axis_angle(matrix), _REST[6:]))

    def _build(self) -> tuple[Any, CameraRenderer, Disturber]:
        with _quiet(), self._task_file() as task_file:
            from libero.libero.envs.env_wrapper import ControlEnv

            # No rendering by robosuite, which renders at every step and twice at the start.
            env = ControlEnv(
                str(task_file),
                has_offscreen_renderer=False,
                use_camera_obs=False,
                hard_reset=False,
                control_freq=int(self._spec.control_hz),
                horizon=max(_HORIZON, self._spec.settle_steps + self._spec.step_limit),
            )
        for name in env.env.observation_names:
            env.env.modify_observable(name, "enabled", False)
        model = env.sim.model._model
        renderer = CameraRenderer(
            model,
            size=self._spec.image_size,
            msaa_samples=self._spec.msaa_samples,
            hidden_groups=(_COLLISION_GROUP,),
        )
        return env, renderer, Disturber(self._spec.disturbance, self._task_id, model)

    @contextlib.contextmanager
    def _task_file(self) -> Iterator[Path]:
        """Gives the task file, or one with distractors for as long as it is read."""
        count, path = _amount(self._spec, "distractors"), Path(self._bddl)
        if not count:
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="xvla_jax_task_") as folder:
            other = Path(folder) / path.name
            text = path.read_text(encoding="utf-8")
            try:
                other.write_text(objects.with_distractors(text, self._task_id, count), "utf-8")
            except ValueError as error:
                raise preflight.SimulatorSetupError(f"{path}: {error}") from error
            yield other

    def _loaded_scene(self) -> LoadedScene:
        sim, env = self._env.sim, self._env.env
        free = {
            name: thing.joints[-1]
            for name, thing in env.objects_dict.items()
            if sim.model._model.joint(thing.joints[-1]).qpos0.size == _FREE
        }
        own = {name: joint for name, joint in free.items() if not objects.is_distractor(name)}
        return LoadedScene(
            model=sim.model._model,
            data=sim.data._data,
            cameras=[view.camera for view in self._spec.client.views],
            things=objects.Things(
                joints=own,
                item=next(
                    (name for name in self._env.obj_of_interest if name in own), next(iter(own))
                ),
                distractors=[joint for name, joint in free.items() if name not in own],
                surface=max(0.0, env.workspace_offset[2]),  # LIBERO's floor has -0.035
            ),
            arm=[sim.model.get_joint_qpos_addr(j) for j in self._env.robots[0].robot_joints],
            reload=self._renderer.reload,
        )


def _amount(spec: TaskSpec, axis: str) -> int:
    """Returns the amount of the row's disturbance where it is of this axis, else 0."""
    change = spec.disturbance
    return int(change.amount) if change is not None and change.axis == axis else 0


def task_index(suite: str, task: str) -> int:
    """Returns the index of a task in the suite's default order.

    Raises:
        ValueError: the suite has no such task; the message lists those it has.
    """
    names = list(_load_suite(suite).get_task_names())
    if task not in names:
        raise ValueError(f"{suite} has no task {task!r}; it has {', '.join(names)}")
    return names.index(task)


def text_source(spec: TaskSpec, task_id: int) -> dict[str, Any]:
    """Returns the instruction of a task and where it comes from, see `task_files.text_of`.

    No simulator is built for it.

    Raises:
        SimulatorSetupError: the task file does not say what its suite does.
    """
    return _text(spec, *_task(_load_suite(spec.suite), spec.suite, task_id))


def _text(spec: TaskSpec, task: Any, folder: Path) -> dict[str, Any]:
    try:
        return task_files.text_of(spec, folder, task.bddl_file, task.language)
    except task_files.TaskFileError as error:
        raise preflight.SimulatorSetupError(str(error)) from error


def _task(tasks: Any, suite: str, task_id: int) -> tuple[Any, Path]:
    """Returns LIBERO's record of a task, and the folder of all task files."""
    count = tasks.get_num_tasks()
    if not 0 <= task_id < count:
        raise ValueError(f"{suite} has no task {task_id}; its tasks are 0..{count - 1}")
    with _quiet():
        from libero.libero import get_libero_path

        return tasks.get_task(task_id), Path(get_libero_path("bddl_files"))


def _load_suite(suite: str) -> Any:
    with _quiet():
        try:
            from libero.libero import benchmark
        except ImportError as error:
            raise preflight.SimulatorSetupError(
                f"LIBERO cannot be imported ({error}); pip install -e '.[sim]' in the checkout"
            ) from error
        except EOFError as error:
            raise preflight.SimulatorSetupError(
                "LIBERO asks where its data sets are; answer it once in a terminal with "
                "python -c 'import libero.libero', or set LIBERO_CONFIG_PATH"
            ) from error
        return benchmark.get_benchmark_dict()[suite]()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences LIBERO: prints, questions on the terminal, warnings about robosuite macros."""
    logger, terminal = logging.getLogger("robosuite_logs"), sys.stdin
    disabled, logger.disabled = logger.disabled, True
    with open(os.devnull, "w") as sink, open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            with contextlib.redirect_stdout(sink):
                yield
        finally:
            sys.stdin, logger.disabled = terminal, disabled
