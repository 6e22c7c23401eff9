"""RoboTwin 2.0: two arms, scenes by seed; the benchmark's own expert tries each seed first.

The n-th episode of a task is the n-th seed, counted up from 2000 * (1 + seed), at which the expert
plans and succeeds. Not run here: RoboTwin needs a GPU for its planner and renderer.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.tasks.spec import TaskSpec

from . import preflight

_LOG = logging.getLogger(__name__)

SEEDS_EACH = 2000
# If the expert of a task fails this often in a row, RoboTwin is set up wrongly.
MAX_REFUSED = 200
_CAMERAS = ("head", "left", "right", "front")


class RobotwinEnv:
    """The adapter of one task of RoboTwin.

    Args:
        spec: row of the task table, with benchmark "robotwin"; its suite is the task_config.
        task_id: index into the row's task names.

    Raises:
        SimulatorSetupError: RoboTwin is missing, or ROBOTWIN_ROOT does not name it.
    """

    num_parts = 1

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        self._spec = spec
        self._task = spec.task_names[task_id]
        root = preflight.required_folder("ROBOTWIN_ROOT", "the folder of the RoboTwin checkout")
        self._env, self._arguments = _robotwin(root, self._task, spec.suite)
        self.instruction = self._task.replace("_", " ")
        device = preflight.vulkan_devices()
        self.renderer_name = f"SAPIEN {preflight.version_of('sapien')} on {device}"
        self._good: list[int] = []
        self._next_seed = -1
        self._first_seed = -1
        self._open = False
        self._closed = 0
        self.failed = False

    def reset(self, init_state: int, seed: int) -> str:
        """Starts an episode and returns a hash of its initial state.

        Args:
            init_state: number of usable seeds before this episode's.
            seed: of `eval.tasks.table.episodes`: the evaluation's seed plus the row's offset and
                `init_state`.
        """
        self.close()
        first = SEEDS_EACH * (1 + seed - self._spec.seed_offset - init_state)
        if first != self._first_seed:
            self._good, self._next_seed, self._first_seed = [], first, first
        while len(self._good) <= init_state:
            self._find_seed()
        self._set_up(self._good[init_state], init_state)
        self.failed = False
        poses = [np.ravel(self._poses()[f"{arm}_endpose"]) for arm in ("left", "right")]
        state = np.concatenate(([self._good[init_state]], *poses)).astype(np.float64)
        return hashlib.sha256(state.tobytes()).hexdigest()[:16]

    def observe(self) -> dict[str, Any]:
        """Returns images [4, H, W, 3] (`_CAMERAS`), end poses xyz and wxyz, grippers 0..1."""
        seen = self._env.get_obs()
        images = [seen["observation"][f"{name}_camera"]["rgb"] for name in _CAMERAS]
        poses = seen["endpose"]
        return {
            "images": np.stack(images),
            "left_endpose": np.asarray(poses["left_endpose"], np.float64),
            "right_endpose": np.asarray(poses["right_endpose"], np.float64),
            "grippers": np.array([poses["left_gripper"], poses["right_gripper"]], np.float64),
        }

    def step(self, action: ArrayLike) -> bool:
        """Carries out xyz (m), quaternion, gripper of both arms [16]; returns True when solved."""
        self._env.take_action(np.asarray(action, np.float64), action_type="ee")
        if self._env.check_success():
            return True
        self.failed = not getattr(self._env, "actor_pose", True)
        return False

    def score(self) -> float | None:
        """Returns None: an episode has success or failure only."""
        return None

    def close(self) -> None:
        """Ends the scene; RoboTwin's configuration says how often the renderer is freed too."""
        if self._open:
            self._closed += 1
            every = self._arguments["clear_cache_freq"]
            self._env.close_env(clear_cache=self._closed % every == 0)
            self._open = False

    def _find_seed(self) -> None:
        """Adds the next seed at which the expert succeeds; its errors skip a seed."""
        for _ in range(MAX_REFUSED):
            seed, self._next_seed = self._next_seed, self._next_seed + 1
            with contextlib.closing(self), _Skipping(seed, self._task):
                self._set_up(seed, len(self._good))
                self._env.play_once()
                if self._env.plan_success and self._env.check_success():
                    self._good.append(seed)
                    return
        raise preflight.SimulatorSetupError(
            f"the expert of {self._task} failed at {MAX_REFUSED} seeds in a row, the last "
            f"{self._next_seed - 1}; RoboTwin's planner or assets are not set up"
        )

    def _set_up(self, seed: int, number: int) -> None:
        self._open = True
        self._env.setup_demo(now_ep_num=number, seed=seed, is_test=True, **self._arguments)

    def _poses(self) -> Any:
        return self._env.get_obs()["endpose"]


class _Skipping:
    """Drops and logs any error of the expert at a seed, as RoboTwin's own script does.

    RoboTwin raises its own `UnStableError(Exception)` where objects do not come to rest, and a
    string (so Python a TypeError) where they find no place.
    """

    def __init__(self, seed: int, task: str) -> None:
        self._seed = seed
        self._task = task

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        _LOG.info("seed %d of %s: the expert raised %r", self._seed, self._task, error)
        return True


def _robotwin(root: str, task: str, configuration: str) -> tuple[Any, dict[str, Any]]:
    """Returns the task's object and its arguments, as in RoboTwin's own evaluation script."""
    sys.path.insert(0, root)
    os.chdir(root)  # RoboTwin's assets and configurations are found from here only
    yaml, package, module = preflight.modules_of("robotwin", "yaml", "envs", "envs." + task)
    folder = Path(package.CONFIGS_PATH)  # task_config/, in newer checkouts under env_cfg/
    arguments = yaml.safe_load((folder / f"{configuration}.yml").read_text("utf-8"))
    kinds = yaml.safe_load((folder / "_embodiment_config.yml").read_text("utf-8"))
    cameras = yaml.safe_load((folder / "_camera_config.yml").read_text("utf-8"))
    head = cameras[arguments["camera"]["head_camera_type"]]
    robots = arguments["embodiment"]
    files = [kinds[name]["file_path"] for name in (robots * 2)[:2]]
    arms = [yaml.safe_load(Path(file, "config.yml").read_text("utf-8")) for file in files]
    arguments.update(
        task_name=task,
        task_config=configuration,
        head_camera_h=head["h"],
        head_camera_w=head["w"],
        left_robot_file=files[0],
        right_robot_file=files[1],
        dual_arm_embodied=len(robots) == 1,
        left_embodiment_config=arms[0],
        right_embodiment_config=arms[1],
        render_freq=0,
        eval_mode=True,
    )
    if len(robots) == 3:
        arguments["embodiment_dis"] = robots[2]
    return getattr(module, task)(), arguments
