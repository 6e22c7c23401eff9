"""The tasks that the scripted expert solves, a row of grasp and motion for each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Iterator, Sequence, Tuple

Offset = Tuple[float, float, float]
Sideways = Tuple[float, float]


@dataclass(frozen=True)
class PickAndPlace:
    """A plan to pick up and place, in metres and control steps; axes are the world's.

    Attributes:
        item: object to pick up.
        goal: object or fixture that it goes to.
        grasp: controller position at the grasp, from the item's centre.
        hover: height above the grasp at which the descent begins.
        carry_height: controller height, above the world's origin, of the way to the goal.
        release: controller position where the fingers open, sideways from the goal's centre.
        lower: descent from the carry height before the fingers open.
        speed: distance that the command moves in a control step.
        grip_steps: control steps in which the fingers close.
        patience: control steps beyond the usual that the hand may need to arrive.
    """

    item: str
    goal: str
    grasp: Offset
    hover: float
    carry_height: float
    release: Sideways
    lower: float
    speed: float
    grip_steps: int
    patience: int


# Around this grasp the bbq bottle is held with errors of 1.5 cm to all sides; around the bottle's
# centre, the fingers would already miss it 1 cm towards the camera.
_BBQ_GRASP = (-0.008, 0.002, 0.01)


def _into_basket(
    item: str, grasp: Offset, *, carry_height: float = 0.25, patience: int = 20
) -> PickAndPlace:
    """LIBERO-Object: things stand on the floor at height 0, and are dropped into the basket."""
    return PickAndPlace(
        item=item,
        goal="basket_1",
        grasp=grasp,
        hover=0.10,
        carry_height=carry_height,
        release=(0.0, 0.0),
        lower=0.0,
        speed=0.03,
        grip_steps=6,
        patience=patience,
    )


def _on_table(
    item: str, goal: str, *, grasp: Offset, carry_height: float, release: Sideways, lower: float
) -> PickAndPlace:
    """LIBERO-Spatial and -Goal: the table's top is at height 0.90."""
    return PickAndPlace(
        item=item,
        goal=goal,
        grasp=grasp,
        hover=0.10,
        carry_height=carry_height,
        release=release,
        lower=lower,
        speed=0.03,
        grip_steps=8,
        patience=20,
    )


def _bowl(
    goal: str,
    *,
    rim: Sideways,
    carry_height: float,
    lower: float,
    beside: Sideways = (0.0, 0.0),
) -> PickAndPlace:
    """The black bowl, held by its rim: it is too wide for the hand, so one finger goes inside.

    Args:
        goal: object or fixture that it is put on.
        rim: point of the rim that is held, from the bowl's centre.
        carry_height: see `PickAndPlace`.
        lower: see `PickAndPlace`.
        beside: final place of the bowl's centre, from the goal's.
    """
    return _on_table(
        "akita_black_bowl_1",
        goal,
        grasp=(*rim, 0.022),
        carry_height=carry_height,
        release=(beside[0] + rim[0], beside[1] + rim[1]),
        lower=lower,
    )


def _bowl_on_plate(rim: Sideways = (0.0, 0.048)) -> PickAndPlace:
    return _bowl("plate_1", rim=rim, carry_height=1.15, lower=0.2)


# The plate task of SO-101. Above a height of 9 cm its wrist cannot point straight down any more.
# The hand comes down 1.2 cm beside the cube, for else the fixed jaw would touch its top.
_ONTO_PLATE = PickAndPlace(
    item="cube",
    goal="plate",
    grasp=(0.0, -0.012, 0.012),
    hover=0.05,
    carry_height=0.082,
    release=(0.0, 0.0),
    lower=0.045,
    speed=0.009,
    grip_steps=12,
    patience=8,
)

PLANS: dict[tuple[str, int], PickAndPlace] = {
    ("libero_object", 0): _into_basket("alphabet_soup_1", (0.0, 0.0, 0.0)),
    # held off its centre: the hand would hit the can beside it
    ("libero_object", 1): _into_basket("cream_cheese_1", (-0.02, 0.0, 0.003)),
    # bottles are held high, since the hand would sit on them, and hang lower for it
    ("libero_object", 2): _into_basket("salad_dressing_1", (0.0, 0.0, 0.04), carry_height=0.30),
    ("libero_object", 3): _into_basket("bbq_sauce_1", _BBQ_GRASP, patience=0),
    ("libero_object", 4): _into_basket("ketchup_1", (0.0, 0.0, 0.04), carry_height=0.30),
    ("libero_object", 5): _into_basket("tomato_sauce_1", (0.0, 0.0, 0.0)),
    ("libero_object", 6): _into_basket("butter_1", (0.0, 0.0, 0.003)),
    ("libero_object", 7): _into_basket("milk_1", (0.0, 0.0, 0.0)),
    ("libero_object", 8): _into_basket("chocolate_pudding_1", (0.0, 0.0, 0.003)),
    ("libero_object", 9): _into_basket("orange_juice_1", (0.0, 0.0, 0.0)),
    ("libero_spatial", 0): _bowl_on_plate(),
    ("libero_spatial", 1): _bowl_on_plate(),
    ("libero_spatial", 2): _bowl_on_plate(),
    ("libero_spatial", 3): _bowl_on_plate((0.02, 0.043)),
    # no row for 4: the drawer's walls keep the fingers from the rim
    ("libero_spatial", 5): _bowl_on_plate((-0.02, -0.043)),
    ("libero_spatial", 6): _bowl_on_plate((0.02, 0.043)),
    ("libero_spatial", 7): _bowl_on_plate(),
    ("libero_spatial", 8): _bowl_on_plate(),
    ("libero_spatial", 9): _bowl_on_plate(),
    # the others of this suite open, push or turn something, or lay the bottle down
    ("libero_goal", 1): _bowl(
        "flat_stove_1", rim=(0.0, 0.048), carry_height=1.15, lower=0.15, beside=(0.14, 0.0)
    ),
    ("libero_goal", 2): _on_table(
        "wine_bottle_1",
        "wooden_cabinet_1",
        grasp=(0.0, 0.0, 0.12),
        carry_height=1.32,
        release=(0.0, 0.0),
        lower=0.06,
    ),
    ("libero_goal", 4): _bowl("wooden_cabinet_1", rim=(0.0, 0.048), carry_height=1.30, lower=0.12),
    ("libero_goal", 6): _on_table(
        "cream_cheese_1",
        "akita_black_bowl_1",
        grasp=(0.0, 0.0, 0.003),
        carry_height=1.10,
        release=(0.0, 0.0),
        lower=0.10,
    ),
    ("libero_goal", 8): _bowl_on_plate(),
    ("so101", 0): _ONTO_PLATE,
}


# Suites of LIBERO-PRO with other objects -> name in the base suite -> name there.
_RENAMED: dict[str, dict[str, str]] = {
    "libero_object": {
        "alphabet_soup_1": "bigger_alphabet_soup_1",
        "basket_1": "red_basket_1",
        "bbq_sauce_1": "green_bbq_sauce_1",
        "butter_1": "green_butter_1",
        "chocolate_pudding_1": "green_chocolate_pudding_1",
        "cream_cheese_1": "red_cream_cheese_1",
        "ketchup_1": "blue_ketchup_1",
        "milk_1": "yellow_milk_1",
        "salad_dressing_1": "red_salad_dressing_1",
        "tomato_sauce_1": "yellow_tomato_sauce_1",
    },
    "libero_spatial": {"akita_black_bowl_1": "black_bowl_1", "plate_1": "yellow_plate_1"},
}


def _changed_suites() -> Iterator[tuple[tuple[str, int], PickAndPlace]]:
    """Yields plans for LIBERO-PRO: the same motion to the same object, moved or with a new name."""
    for (suite, task_id), plan in PLANS.items():
        if suite.startswith("libero_"):
            yield (f"{suite}_swap", task_id), plan
            yield (f"{suite}_lan", task_id), plan
        if suite in _RENAMED:
            names = _RENAMED[suite]
            item, goal = (names.get(name, name) for name in (plan.item, plan.goal))
            renamed = dataclasses.replace(plan, item=item, goal=goal)
            yield (f"{suite}_object", task_id), renamed


PLANS.update(list(_changed_suites()))


def planned_tasks(suite: str, task_ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the tasks that the expert has a plan for, in the given order.

    Raises:
        ValueError: it has none for any; the message lists the tasks that have one.
    """
    planned = tuple(index for index in task_ids if (suite, index) in PLANS)
    if not planned:
        plan_for(suite, task_ids[0])
    return planned


def plan_for(suite: str, task_id: int) -> PickAndPlace:
    """Returns the plan of a task.

    Raises:
        ValueError: the task has none; the message lists those that have one.
    """
    if (suite, task_id) not in PLANS:
        known = ", ".join(f"{name} {index}" for name, index in sorted(PLANS))
        raise ValueError(
            f"no scripted expert for {suite} task {task_id}; eval/simulators/plans.py has plans "
            f"for {known}"
        )
    return PLANS[suite, task_id]
