"""Changes a loaded MuJoCo model for one disturbed episode: its looks, or the initial state.

Camera, light and texture leave the simulation's state as it is: the same actions give the same
motion to the bit. Place, posture and distractors change the initial state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.extras import needed
from eval.rotations import axis_angle_to_matrix
from eval.tasks.spec import Disturbance

from . import objects
from .axes import draws

_WORLD = 0  # body that cameras fixed in the room belong to
_TINT = 0.5  # of the change of brightness
_PATCHES = 8  # across and down a texture, or a side of a cube's
_LIGHT_COLUMNS = ("light_ambient", "light_diffuse", "light_specular")
_HEADLIGHT_COLUMNS = ("ambient", "diffuse", "specular")


@dataclass(frozen=True)
class LoadedScene:
    """A loaded scene.

    Attributes:
        model: mujoco.MjModel.
        data: mujoco.MjData.
        cameras: names of the row's cameras; those that the robot carries stay.
        things: the movable objects and where they stand.
        arm: addresses of the arm's joints in qpos.
        reload: sends the model's textures to the renderer.
    """

    model: Any
    data: Any
    cameras: Sequence[str]
    things: objects.Things
    arm: Sequence[int]
    reload: Callable[[], None]


class Disturber:
    """Disturbs the episodes of one task in one loaded model.

    The model outlives an episode, so its looks are computed from those that it was loaded with.

    Args:
        disturbance: of the row, None for none.
        task_id: index of the task.
        model: mujoco.MjModel as loaded.
    """

    def __init__(self, disturbance: Disturbance | None, task_id: int, model: Any) -> None:
        self._change = disturbance
        self._task_id = task_id
        columns = _COLUMNS.get(disturbance.axis, ()) if disturbance else ()
        self._loaded = {name: np.array(_column(model, name)) for name in columns}

    def disturb(self, scene: LoadedScene, init_state: int, seed: int) -> None:
        """Disturbs an episode whose objects stand where the row places them.

        Args:
            scene: its simulation, before the first control step.
            init_state: index of the initial state, -1 where the simulator placed the objects.
            seed: of the episode.
        """
        change = self._change
        if change is None or not change.amount or change.axis not in _CHANGES:
            return
        rng = draws(change.axis, self._task_id, init_state, seed)
        _CHANGES[change.axis](scene, self._loaded, change.amount, rng)


Arrays = Mapping[str, NDArray[Any]]


def _column(model: Any, name: str) -> Any:
    """Returns an array of a model: a field, or one of its headlight."""
    holder, _, field = name.rpartition(".")
    return getattr(model.vis.headlight if holder else model, field)


def _move_cameras(
    scene: LoadedScene, loaded: Arrays, amount: float, rng: np.random.Generator
) -> None:
    """Turns each camera of the room by `amount` degrees about a point before it.

    The point is on the optical axis, as far away as the objects are; the axis of the turn is drawn
    among those across the view, so that the camera moves to a side, up, down or in between.
    """
    mujoco = needed("mujoco", "sim")
    model, data = scene.model, scene.data
    centre = scene.things.positions(data).mean(axis=0)
    for name in scene.cameras:
        camera = model.camera(name).id
        if model.cam_bodyid[camera] != _WORLD:
            continue
        place, quat = loaded["cam_pos"][camera], loaded["cam_quat"][camera]
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, quat)
        right, up, backward = matrix.reshape(3, 3).T
        target = place - backward * max((place - centre) @ backward, 0.0)
        angle = rng.uniform(0, 2 * np.pi)
        turn = axis_angle_to_matrix(
            np.deg2rad(amount) * (np.cos(angle) * right + np.sin(angle) * up)
        )
        model.cam_pos[camera] = target + turn @ (place - target)
        turned = np.zeros(4)
        mujoco.mju_mat2Quat(turned, (turn @ matrix.reshape(3, 3)).ravel())
        model.cam_quat[camera] = turned
    mujoco.mj_camlight(model, data)


def _change_lights(
    scene: LoadedScene, loaded: Arrays, amount: float, rng: np.random.Generator
) -> None:
    """Multiplies all light by exp(amount) or exp(-amount), with a tint of half that size."""
    tint = rng.normal(size=3)
    tint -= tint.mean()
    exponent = rng.choice((-1.0, 1.0)) + _TINT * tint / np.linalg.norm(tint)
    for name, values in loaded.items():
        _column(scene.model, name)[:] = values * np.exp(amount * exponent)


def _patch_textures(
    scene: LoadedScene, loaded: Arrays, amount: float, rng: np.random.Generator
) -> None:
    """Adds a colour of standard deviation `amount` to each of 8 x 8 patches of every texture."""
    mujoco = needed("mujoco", "sim")
    model = scene.model
    for texture in range(model.ntex):
        height, width = model.tex_height[texture], model.tex_width[texture]
        channels = model.tex_nchannel[texture]
        rows = _PATCHES * max(1, height // width)  # a cube's six sides are below each other
        noise = rng.normal(0.0, amount, (rows, _PATCHES, channels))
        if model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            continue
        start = model.tex_adr[texture]
        part = slice(start, start + height * width * channels)
        row = np.arange(height) * rows // height
        column = np.arange(width) * _PATCHES // width
        image = loaded["tex_data"][part].reshape(height, width, channels)
        patched = image + np.rint(noise[row[:, None], column]).astype(np.int16)
        model.tex_data[part] = np.clip(patched, 0, 255).astype(np.uint8).ravel()
    scene.reload()


def _bend_arm(scene: LoadedScene, _: Arrays, amount: float, rng: np.random.Generator) -> None:
    """Moves the arm's joints by `amount` radians along a drawn direction of joint space."""
    way = rng.normal(size=len(scene.arm))
    scene.data.qpos[list(scene.arm)] += amount * way / np.linalg.norm(way)
    needed("mujoco", "sim").mj_forward(scene.model, scene.data)


def _move_item(scene: LoadedScene, _: Arrays, amount: float, rng: np.random.Generator) -> None:
    objects.move_item(scene.model, scene.data, scene.things, amount, rng)


def _spread(scene: LoadedScene, _: Arrays, __: float, rng: np.random.Generator) -> None:
    objects.spread(scene.model, scene.data, scene.things, rng)


_CHANGES: Mapping[str, Callable[[LoadedScene, Arrays, float, np.random.Generator], None]] = {
    "camera": _move_cameras,
    "light": _change_lights,
    "texture": _patch_textures,
    "place": _move_item,
    "posture": _bend_arm,
    "distractors": _spread,
}
# axis -> arrays of the model that it changes
_COLUMNS: Mapping[str, Sequence[str]] = {
    "camera": ("cam_pos", "cam_quat"),
    "light": (*_LIGHT_COLUMNS, *(f"headlight.{name}" for name in _HEADLIGHT_COLUMNS)),
    "texture": ("tex_data",),
}
