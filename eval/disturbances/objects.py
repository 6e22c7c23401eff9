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

from eval.extras import needed

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
_NUMBER = re.compile(rf"{_MARK}_(\d+)")
_OBJECTS = re.compile(r"(\(:objects)([^()]*)(\))")

_DIRECTIONS = 16  # that are tried for the object to pick up
_PLACES = 400  # that are tried for a distractor
_MARGIN = 0.12  # m, around the objects, in which distractors may stand
_CLEARANCE = 0.03  # m, between a distractor and another shape
_REACH = 0.25  # m above the surface; shapes higher up do not matter
_FLAT = 0.01  # m above the surface; shapes that end below carry things and are no obstacles
_ABOVE = 0.12  # m, in which the surface is looked for
_GRID = 12  # rays across and along the area for it
_SIDES = ((0.0, 0.0), (0.05, 0.0), (-0.05, 0.0), (0.0, 0.05), (0.0, -0.05))  # m
_DEPTH = 0.002  # m of penetration that counts as a touch


@dataclass(frozen=True)
class Things:
    """The movable objects of a scene.

    Attributes:
        joints: object -> its free joint, without the distractors.
        item: the object to pick up.
        distractors: their free joints.
        surface: height (m) near that on which things stand.
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
    """Returns the text of a task file with further objects, of categories that it does not have.

    Which ones is drawn by the task; a higher count keeps those of a lower one. Where there are more
    than categories, these are repeated.

    Args:
        task_file: its text.
        task_id: index of the task.
        count: number of distractors.

    Raises:
        ValueError: the file has no list of objects, or all groceries.
    """
    listed = _OBJECTS.search(task_file)
    if listed is None:
        raise ValueError("no (:objects ...) in the task file, so nothing can be added")
    used = set(listed.group(2).split())
    free = [name for name in GROCERIES if name not in used]
    if not free:
        raise ValueError(f"the task has all of {', '.join(GROCERIES)}, so no distractor is left")
    order = draws("distractors", task_id, -1, 0).permutation(len(free))
    names: dict[str, list[str]] = {}
    for k in range(count):
        category = free[order[k % len(free)]]
        names.setdefault(category, []).append(f"{category}{_MARK}_{k}")
    lines = "".join(f"    {' '.join(few)} - {category}\n  " for category, few in names.items())
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
    joint = things.joints[things.item]
    pose = data.joint(joint).qpos
    start, touched = pose[:2].copy(), _depths(model, data, joint)
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi / _DIRECTIONS * rng.permutation(_DIRECTIONS)
    ways = distance * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    deepest = []
    for way in ways:
        pose[:2] = start + way
        mujoco.mj_forward(model, data)
        # official states begin with things in the floor or in what they stand on
        depths = _depths(model, data, joint)
        deepest.append(max((depths[o] - touched.get(o, 0.0) for o in depths), default=0.0))
        if deepest[-1] < _DEPTH:
            return
    pose[:2] = start + ways[int(np.argmin(deepest))]
    mujoco.mj_forward(model, data)


def spread(model: Any, data: Any, things: Things, rng: np.random.Generator) -> None:
    """Places the distractors around the objects, each clear of all that stands there."""
    mujoco = needed("mujoco", "sim")
    own = things.positions(data)[:, :2]
    low, high = own.min(axis=0) - _MARGIN, own.max(axis=0) + _MARGIN
    # by number, so that a higher count places those of a lower one alike
    waiting = sorted(things.distractors, key=lambda joint: int(_NUMBER.findall(joint)[0]))
    surface = _surface(model, data, things.surface, low, high)
    for joint in list(waiting):
        tilt, height = GROCERIES[joint.partition(_MARK)[0]]
        places = rng.uniform(low, high, (_PLACES, 2))
        half_yaw, half_tilt = rng.uniform(0, np.pi), tilt / 2
        pose = data.joint(joint).qpos  # xyz, quaternion wxyz
        pose[2] = surface + height
        mujoco.mju_mulQuat(
            pose[3:],
            np.array([np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]),
            np.array([np.cos(half_tilt), np.sin(half_tilt), 0.0, 0.0]),
        )
        mujoco.mj_forward(model, data)
        room = _room(model, data, surface, places, joint, waiting)
        # the first that is clear, then the others by how clear they are
        order = np.argsort(-np.minimum(room, _CLEARANCE), kind="stable")
        on_it = (k for k in order if _carried(model, data, places[k], surface))
        pose[:2] = places[next(on_it, order[0])]
        waiting.remove(joint)
        mujoco.mj_forward(model, data)


def _room(
    model: Any,
    data: Any,
    surface: float,
    places: NDArray[np.float64],
    joint: str,
    waiting: Sequence[str],
) -> NDArray[np.float64]:
    """Returns how far (m) an object at each of the places [n, 2] is from the nearest shape.

    Args:
        model: mujoco.MjModel.
        data: mujoco.MjData.
        surface: height on which things stand.
        places: xy of the object's centre.
        joint: of the object, which stands at its height already.
        waiting: joints of objects that have no place yet, its own among them.
    """
    root = model.body_rootid[model.geom_bodyid]  # of each shape
    radius, height = model.geom_rbound, data.geom_xpos[:, 2]
    solid = (model.geom_contype + model.geom_conaffinity > 0) & (radius > 0)
    own = solid & (root == model.joint(joint).bodyid[0])
    others = solid & ~np.isin(root, [model.joint(name).bodyid[0] for name in waiting])
    others &= (_tops(model, data) > surface + _FLAT) & (height - radius < surface + _REACH)
    # around its origin, whichever way it is turned
    away = np.linalg.norm(data.geom_xpos[own] - data.joint(joint).qpos[:3], axis=1)
    apart = np.linalg.norm(places[:, None] - data.geom_xpos[others, :2], axis=-1)
    return (apart - radius[others]).min(axis=1) - (away + radius[own]).max()


def _tops(model: Any, data: Any) -> NDArray[np.float64]:
    """Returns the height (m) at which the box around each shape ends, float64[n]."""
    upward = data.geom_xmat[:, 6:]  # height of the shape's own axes, [n, 3]
    centre, half = model.geom_aabb[:, :3], model.geom_aabb[:, 3:]
    return data.geom_xpos[:, 2] + (upward * centre).sum(1) + (np.abs(upward) * half).sum(1)


def _surface(
    model: Any, data: Any, near: float, low: NDArray[np.float64], high: NDArray[np.float64]
) -> float:
    """Returns the height (m) at which most of an area, from `low` [2] to `high` [2], ends.

    LIBERO's own numbers of its tables are off by up to 5 cm.
    """
    grid = np.linspace(low, high, _GRID)
    heights = [_height(model, data, x, y, near + _ABOVE) for x in grid[:, 0] for y in grid[:, 1]]
    bins = np.rint(np.array([h for h in heights if abs(h - near) <= _ABOVE]) / _FLAT)
    if not len(bins):
        return near
    most = int(np.bincount((bins - bins.min()).astype(int)).argmax()) + bins.min()
    return float(np.median([h for h in heights if abs(h - most * _FLAT) <= _FLAT]))


def _carried(model: Any, data: Any, place: NDArray[np.float64], surface: float) -> bool:
    """Returns True where the surface is below a place [2] and 5 cm to all four sides of it."""
    return all(
        abs(_height(model, data, x, y, surface + _FLAT) - surface) <= _FLAT
        for x, y in place + np.array(_SIDES)
    )


def _height(model: Any, data: Any, x: float, y: float, top: float) -> float:
    """Returns the height (m) of the first shape below a point, -inf where there is none."""
    start, down = np.array([x, y, top]), np.array([0.0, 0.0, -1.0])
    hit = np.zeros(1, np.int32)
    away = needed("mujoco", "sim").mj_ray(model, data, start, down, None, True, -1, hit)
    return top - away if away >= 0 else -np.inf


def _depths(model: Any, data: Any, joint: str) -> dict[int, float]:
    """Returns how deep (m) an object enters each other thing, by the number of its root body."""
    root = model.joint(joint).bodyid[0]
    deepest: dict[int, float] = {}
    for contact in data.contact[: data.ncon]:
        first, second = model.body_rootid[model.geom_bodyid[[contact.geom1, contact.geom2]]]
        if (first == root) != (second == root):
            other = int(second if first == root else first)
            deepest[other] = max(deepest.get(other, 0.0), -float(contact.dist))
    return deepest
