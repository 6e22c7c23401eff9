"""Scripted pick and place from ground truth: makes demonstrations, and is an upper bound.

It sees what no policy sees (object positions), and commands absolute poses row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np
from numpy.typing import NDArray

from .rotations import ROT6D_LAYOUTS

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """Ground truth: controller position (m) and matrix, and positions of the objects (m)."""

    position: Vector
    matrix: Vector
    objects: Mapping[str, Vector]


@dataclass(frozen=True)
class PickAndPlace:
    """What to move where, in metres and control steps.

    Attributes:
        item: object to pick up.
        goal: object to drop it into.
        grasp: controller position at the grasp, from the item's centre.
        hover: height above the grasp at which the descent begins.
        carry_height: controller height, above the world's origin, of the way to the goal.
        speed: how far the command moves in a control step.
        grip_steps: control steps that the fingers get to close.
    """

    item: str
    goal: str
    grasp: tuple[float, float, float]
    hover: float
    carry_height: float
    speed: float
    grip_steps: int


# (suite, task index) -> plan. Around this grasp the bbq bottle is held with errors of 1.5 cm to all
# sides; around the bottle's centre, the fingers would already miss it 1 cm towards the camera.
PLANS: dict[tuple[str, int], PickAndPlace] = {
    ("libero_object", 3): PickAndPlace(
        item="bbq_sauce_1",
        goal="basket_1",
        grasp=(-0.008, 0.002, 0.01),
        hover=0.10,
        carry_height=0.25,
        speed=0.03,
        grip_steps=6,
    ),
}


def plan_for(suite: str, task_id: int) -> PickAndPlace:
    """The plan of a task.

    Raises:
        ValueError: the task has none; the message lists those that have one.
    """
    if (suite, task_id) not in PLANS:
        known = ", ".join(f"{name} {index}" for name, index in sorted(PLANS))
        raise ValueError(
            f"no scripted expert for {suite} task {task_id}; eval/expert.py has plans for {known}"
        )
    return PLANS[suite, task_id]


@dataclass(frozen=True)
class _Stage:
    name: str
    closed: bool
    tolerance: float  # m, between the measured position and the stage's target
    patience: int  # control steps after which an arrived command is taken for arrival


_GRIP = "grip"
_STAGES = (
    _Stage("wander", closed=False, tolerance=0.03, patience=4),
    _Stage("hover", closed=False, tolerance=0.02, patience=5),
    _Stage("descend", closed=False, tolerance=0.006, patience=6),
    _Stage(_GRIP, closed=True, tolerance=0.0, patience=0),
    _Stage("lift", closed=True, tolerance=0.03, patience=8),
    _Stage("carry", closed=True, tolerance=0.015, patience=10),
    _Stage("release", closed=False, tolerance=0.0, patience=1_000_000),
)


class ScriptedExpert:
    """State machine over `_STAGES` for one episode.

    Args:
        plan: what to move where.
        scene: ground truth at the start; the grasp is planned from it, as the item stands still.
        wander: size in metres of a random excursion at the start, and three times that of a random
            error of the hover point, so that demonstrations pass through more poses. 0 for none.
        rng: source of the excursion.
        rotation: 6-D layout of the rows, as in the task's row.
    """

    def __init__(
        self,
        plan: PickAndPlace,
        scene: Scene,
        *,
        wander: float,
        rng: np.random.Generator,
        rotation: str,
    ) -> None:
        self._plan = plan
        self._command = np.array(scene.position, np.float64)
        self._rot6d = ROT6D_LAYOUTS[rotation].from_matrix(scene.matrix)
        grasp = scene.objects[plan.item] + np.array(plan.grasp)
        excursion = rng.uniform(-wander, wander, 3)
        error = np.append(rng.uniform(-wander, wander, 2) / 3, 0.0)
        goal = scene.objects[plan.goal]
        above_goal = np.array([goal[0], goal[1], plan.carry_height])
        self._targets = {
            "wander": self._command + excursion,
            "hover": grasp + error + np.array([0.0, 0.0, plan.hover]),
            "descend": grasp,
            _GRIP: grasp,
            "lift": np.array([grasp[0], grasp[1], plan.carry_height]),
            "carry": above_goal,
            "release": above_goal,
        }
        self._index = 0 if wander > 0 else 1
        self._waited = 0

    @property
    def stage(self) -> str:
        """Name of the present stage."""
        return _STAGES[self._index].name

    def act(self, scene: Scene) -> NDArray[np.float32]:
        """The next row [10]: xyz (m), 6-D rotation, gripper (1 closed, 0 open)."""
        self._advance(scene)
        stage = _STAGES[self._index]
        way = self._targets[stage.name] - self._command
        distance = float(np.linalg.norm(way))
        self._command = self._command + way * min(1.0, self._plan.speed / max(distance, 1e-9))
        return np.concatenate((self._command, self._rot6d, [float(stage.closed)])).astype(
            np.float32
        )

    def _advance(self, scene: Scene) -> None:
        stage = _STAGES[self._index]
        target = self._targets[stage.name]
        if not np.allclose(self._command, target, atol=1e-9):
            return
        self._waited += 1
        patience = self._plan.grip_steps if stage.name == _GRIP else stage.patience
        near = float(np.linalg.norm(target - scene.position)) < stage.tolerance
        if (near or self._waited > patience) and self._index + 1 < len(_STAGES):
            self._index += 1
            self._waited = 0
