"""Objects of a disturbed scene: the one to pick up moved, and distractors beside the others.

Distractors are groceries of LIBERO's own assets that the task does not have. They are written into
the task file, so that LIBERO loads them, and placed where they touch nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.pictures import needed

from .axes import draws

_UP = np.pi / 2
# category of LIBERO's objects -> turn about x (rad) with which it stands, and height (m) of its
# origin above the surface then; all are in libero_object
GROCERIES: Mapping[str, tuple[float, float]] = {
    "alphabet_soup": (_UP, 0.040),
    "bbq_sauce": (0.0, 0.057),
    "butter": (0.0, 0.011),
    "chocolate_pudding": (0.0, 0.015),
    "cream_cheese": (0.0, 0.011),
    "ketchup": (_UP, 0.074),
    "milk": (_UP, 0.072),
    "orange_juice": (_UP, 0.072),
    "salad_dressing": (_UP, 0.075),
    "tomato_sauce": (_UP, 0.040),
}
_MARK = "_distractor"
_OBJECTS = re.compile(r"(\(:objects)([^()]*)(\))")

_DIRECTIONS = 16  # that are tried for the object to pick up
_PLACES = 400  # that are tried for a distractor
_MARGIN = 0.12  # m, around the objects, in which distractors may stand
_CLEARANCE = 0.03  # m, between a distractor and another shape
_REACH = 0.25  # m above the surface; shapes higher up do not matter
_LARGE = 0.6  # m; shapes of a larger radius are floors, tables and walls
_DEPTH = 0.002  # m of penetration that counts as a touch


@dataclass(frozen=True)
class Things:
    """The movable objects of a scene.

    Attributes:
        joints: object -> its free joint, without the distractors.
        item: the object to pick up.
        distractors: their free joints, in the order in which they are placed.
        surface: height (m) on which things stand.
    """

    joints: Mapping[str, str]
    item: str
    distractors: Sequence[str]
    surface: float

    def positions(self, data: Any) -> NDArray[np.float64]:
        """Returns the positions of the task's own objects, float64[n, 3] in metres."""
        return np.stack([data.joint(joint).qpos[:3] for joint in self.joints.values()])


def is_distractor(name: str) -> bool:
    """Returns True for an object, or its joint, that `with_distractors` added."""
    return _MARK in name


def with_distractors(task_file: str, task_id: int, count: int) -> str:
    """Returns the text of a task file with further objects.

    Which ones is drawn by the task; a higher count keeps those of a lower one.

    Args:
        task_file: its text.
        task_id: index of the task.
        count: number of distractors.

    Raises:
        ValueError: the file has no list of objects, or too few groceries are left.
    """
    listed = _OBJECTS.search(task_file)
    if listed is None:
        raise ValueError("no (:objects ...) in the task file, so nothing can be added")
    used = set(listed.group(2).split())
    free = [name for name in GROCERIES if name not in used]
    if count > len(free):
        raise ValueError(f"{count} distractors; the task leaves {len(free)}: {', '.join(free)}")
    order = draws("distractors", task_id, -1, 0).permutation(len(free))[:count]
    lines = "".join(f"    {free[k]}{_MARK} - {free[k]}\n  " for k in order)
    return _OBJECTS.sub(
        lambda m: f"{m.group(1)}{m.group(2).rstrip()}\n{lines}{m.group(3)}", task_file
    )


def state_with(model: Any, data: Any, things: Things, state: ArrayLike) -> NDArray[np.float64]:
    """Returns a state of the scene without distractors as one of the scene with them.

    Args:
        model: mujoco.MjModel with distractors.
        data: mujoco.MjData, from which their part comes.
        things: its objects.
        state: time, positions and velocities, flat.

    Raises:
        ValueError: the state is of another scene.
    """
    own = np.asarray(state, np.float64)
    position, velocity = np.ones(model.nq, bool), np.ones(model.nv, bool)
    for name in things.distractors:
        joint = model.joint(name)
        position[joint.qposadr[0] : joint.qposadr[0] + 7] = False
        velocity[joint.dofadr[0] : joint.dofadr[0] + 6] = False
    kept = np.concatenate(([True], position, velocity))
    if kept.sum() != len(own):
        raise ValueError(
            f"an initial state of {len(own)} numbers; without distractors the scene has "
            f"{kept.sum()}"
        )
    made = np.concatenate(([data.time], data.qpos, data.qvel))
    made[kept] = own
    return made


def move_item(
    model: Any, data: Any, things: Things, distance: float, rng: np.random.Generator
) -> None:
    """Moves the object to pick up sideways by `distance` (m).

    In the first of some drawn directions in which it enters no other shape, or else in the one in
    which it enters least.
    """
    mujoco = needed("mujoco", "sim")
    pose = data.joint(things.joints[things.item]).qpos
    before = pose.copy()
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi / _DIRECTIONS * rng.permutation(_DIRECTIONS)
    depths = []
    for angle in angles:
        pose[:2] = before[:2] + distance * np.array([np.cos(angle), np.sin(angle)])
        mujoco.mj_forward(model, data)
        depths.append(_depth(model, data, things.joints[things.item]))
        if depths[-1] < _DEPTH:
            return
    angle = angles[int(np.argmin(depths))]
    pose[:2] = before[:2] + distance * np.array([np.cos(angle), np.sin(angle)])
    mujoco.mj_forward(model, data)


def spread(model: Any, data: Any, things: Things, rng: np.random.Generator) -> None:
    """Places the distractors around the objects, each clear of all that stands there."""
    mujoco = needed("mujoco", "sim")
    own = things.positions(data)[:, :2]
    low, high = own.min(axis=0) - _MARGIN, own.max(axis=0) + _MARGIN
    waiting = list(things.distractors)
    for joint in things.distractors:
        tilt, height = GROCERIES[joint.partition(_MARK)[0]]
        places = rng.uniform(low, high, (_PLACES, 2))
        half_yaw, half_tilt = rng.uniform(0, np.pi), tilt / 2
        pose = data.joint(joint).qpos  # xyz, quaternion wxyz
        pose[2] = things.surface + height
        mujoco.mju_mulQuat(
            pose[3:],
            np.array([np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]),
            np.array([np.cos(half_tilt), np.sin(half_tilt), 0.0, 0.0]),
        )
        mujoco.mj_forward(model, data)
        room = _room(model, data, places, joint, waiting)
        enough = np.flatnonzero(room >= _CLEARANCE)
        pose[:2] = places[enough[0] if len(enough) else int(np.argmax(room))]
        waiting.remove(joint)
        mujoco.mj_forward(model, data)


def _room(
    model: Any, data: Any, places: NDArray[np.float64], joint: str, waiting: Sequence[str]
) -> NDArray[np.float64]:
    """Returns how far (m) an object at each of the places [n, 2] is from the nearest shape.

    Args:
        model: mujoco.MjModel.
        data: mujoco.MjData.
        places: xy of the object's centre.
        joint: of the object, which stands at its height already.
        waiting: joints of objects that have no place yet, its own among them.
    """
    root = model.body_rootid[model.geom_bodyid]  # of each shape
    radius, height = model.geom_rbound, data.geom_xpos[:, 2]
    solid = (model.geom_contype + model.geom_conaffinity > 0) & (radius > 0) & (radius < _LARGE)
    own = solid & (root == model.joint(joint).bodyid[0])
    others = solid & ~np.isin(root, [model.joint(name).bodyid[0] for name in waiting])
    surface = data.joint(joint).qpos[2]
    others &= np.abs(height - surface) - radius < _REACH
    # around its origin, whichever way it is turned
    away = np.linalg.norm(data.geom_xpos[own] - data.joint(joint).qpos[:3], axis=1)
    apart = np.linalg.norm(places[:, None] - data.geom_xpos[others, :2], axis=-1)
    return (apart - radius[others]).min(axis=1) - (away + radius[own]).max()


def _depth(model: Any, data: Any, joint: str) -> float:
    """Returns how deep (m) an object enters other shapes, 0 where it touches none."""
    root = model.joint(joint).bodyid[0]
    deepest = 0.0
    for contact in data.contact[: data.ncon]:
        first, second = model.body_rootid[model.geom_bodyid[[contact.geom1, contact.geom2]]]
        if (first == root) != (second == root):
            deepest = max(deepest, -float(contact.dist))
    return deepest
