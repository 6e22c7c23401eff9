"""The axes along which a row can be disturbed, with the amounts of their levels.

A disturbed row is `ROW:AXISLEVEL`, such as libero_goal:camera2. What an episode draws depends on
axis, task, initial state and seed and not on the level: a higher level goes further the same way.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Mapping

import numpy as np

from eval.tasks.spec import Disturbance

# Benchmarks whose adapter carries the axes out; the amounts are chosen for LIBERO's scenes.
BENCHMARKS = ("libero",)


@dataclass(frozen=True)
class Axis:
    """One thing that can be changed.

    Attributes:
        changes: in words.
        amounts: of levels 1, 2, ...; level 0 is the amount 0.
        unit: of the amounts.
        same_state: True where the initial state stays that of the control arm.
    """

    changes: str
    amounts: tuple[float, ...]
    unit: str
    same_state: bool


AXES: Mapping[str, Axis] = {
    "camera": Axis(
        "cameras in the room move around what they look at", (5, 10, 20), "degrees", True
    ),
    "light": Axis(
        "lights are brighter or darker, with a tint", (0.2, 0.4, 0.8), "log of the factor", True
    ),
    "texture": Axis("patches of other colours on all textures", (6, 12, 24), "grey levels", True),
    "place": Axis("the object to pick up stands elsewhere", (0.01, 0.02, 0.04), "m", False),
    "posture": Axis("the arm begins with other joint angles", (0.1, 0.2, 0.4), "rad", False),
    "distractors": Axis("groceries stand beside the objects", (1, 2, 4), "objects", False),
    "text": Axis("the instruction is worded otherwise", (1, 2, 3), "wording", True),
    "delay": Axis("actions are carried out later", (1, 2, 4), "control steps", True),
}

_NAME = re.compile(r"(?P<row>.+):(?P<axis>[a-z]+)(?P<level>\d+)")


def disturbance(axis: str, level: int) -> Disturbance:
    """Returns a level of an axis.

    Raises:
        ValueError: there is no such axis or level; the message lists those that there are.
    """
    if axis not in AXES:
        raise ValueError(f"no axis {axis!r} to disturb; the axes are {', '.join(AXES)}")
    one = AXES[axis]
    if not 0 <= level <= len(one.amounts):
        raise ValueError(f"{axis} has levels 0 to {len(one.amounts)}, not {level}")
    amount = float((0, *one.amounts)[level])
    return Disturbance(axis, level, amount, one.unit, one.same_state)


def split_name(name: str) -> tuple[str, str, int] | None:
    """Splits ROW:AXISLEVEL into row, axis and level; None for another form."""
    parts = _NAME.fullmatch(name)
    return (parts["row"], parts["axis"], int(parts["level"])) if parts else None


def draws(axis: str, task_id: int, init_state: int, seed: int) -> np.random.Generator:
    """Returns the random numbers of an episode's disturbance.

    Args:
        axis: key of `AXES`.
        task_id: index of the task.
        init_state: index of the initial state, -1 where the simulator places the objects.
        seed: of the episode.
    """
    return np.random.default_rng((zlib.crc32(axis.encode()), task_id, init_state + 1, seed))
