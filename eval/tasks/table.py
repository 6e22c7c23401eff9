"""The rows of the task table by name, and the episodes of a row.

A row is a protocol: two rows may share scenes and differ in step limit. Rows without a colon in
their name are `faithful`: they repeat the authors' clients, so that published numbers can be
compared. `NAME:strict` has no tuned threshold, no stretched limit and no known bug;
`NAME:task_file` is the control arm of LIBERO-PRO's suites. `NAME:AXISLEVEL` is a row of LIBERO with
one disturbance (eval/disturbances/axes.py); it is made when it is asked for. To add a benchmark,
add its rows in eval/tasks/ and an adapter for its simulator; no other code changes.
"""

from __future__ import annotations

import math
import re
from typing import Sequence

from eval.disturbances.axes import split_name

from . import calvin, google, libero, libero_pro, so101, two_arms, variants, vlabench, widowx
from .profiles import View
from .spec import Episode, Reference, Scenario, TaskSpec, task_contract

__all__ = [
    "TASKS",
    "TRAINING_STATES",
    "Episode",
    "Reference",
    "Scenario",
    "TaskSpec",
    "View",
    "episodes",
    "evaluation_states",
    "parse_states",
    "states_text",
    "task_contract",
    "task_spec",
    "training_states",
]

# Official initial states that demonstrations may start from; `held_out` of a row begins behind.
TRAINING_STATES = tuple(range(30))

_FAMILIES = (libero, libero_pro, calvin, widowx, google, two_arms, vlabench, so101)

TASKS: dict[str, TaskSpec] = {spec.name: spec for family in _FAMILIES for spec in family.ROWS}


def task_spec(name: str) -> TaskSpec:
    """Returns the row called `name`, of the table or a disturbed one of it.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    parts = split_name(name)
    if parts and name not in TASKS and parts[0] in TASKS:
        row, axis, level = parts
        return variants.disturbed(TASKS[row], axis, level)
    if name not in TASKS:
        raise ValueError(
            f"no task {name!r}; the rows of eval/tasks/ are {', '.join(sorted(TASKS))}"
        )
    return TASKS[name]


def evaluation_states(spec: TaskSpec) -> range:
    """Returns the initial states on which a row is evaluated where none are given."""
    return range(spec.held_out or 0, spec.num_init_states)


def parse_states(text: str) -> range:
    """Parses initial states: first:end, or first:end:stride for one of every `stride`.

    Raises:
        ValueError: another form, or none between the two.
    """
    form = re.fullmatch(r"(\d+):(\d+)(?::([1-9]\d*))?", text)
    states = range(*(int(number) for number in form.groups() if number)) if form else range(0)
    if not states:
        raise ValueError(
            f"initial states {text!r}; first:end with first < end is expected, such as 50:100, or "
            "first:end:stride, such as 50:100:2"
        )
    return states


def states_text(states: range) -> str:
    """Returns initial states in the form that `parse_states` takes."""
    stride = f":{states.step}" if states.step > 1 else ""
    return f"{states.start}:{states.stop}{stride}"


def training_states(spec: TaskSpec) -> Sequence[int]:
    """Returns the initial states that demonstrations of a row may start from."""
    return TRAINING_STATES if spec.held_out is None else range(spec.held_out)


def episodes(
    spec: TaskSpec,
    *,
    init_states: Sequence[int],
    seed: int,
    task_ids: Sequence[int] | None = None,
) -> list[Episode]:
    """Returns one episode for each task of the row and each of the initial states.

    Args:
        spec: the row.
        init_states: indices of initial states.
        seed: of the evaluation; every episode's seed follows from it.
        task_ids: indices of tasks, None for all of the row.

    Raises:
        ValueError: an initial state that the tasks do not have, or no tasks: the row leaves them
            to the simulator. Rows with `held_out` have as many states as are asked for.
    """
    tasks = spec.task_ids if task_ids is None else tuple(task_ids)
    if not tasks:
        raise ValueError(f"{spec.name} has no list of tasks; give task_ids of {spec.suite!r}")
    end = spec.num_init_states if spec.held_out is None else math.inf
    wrong = [index for index in init_states if not 0 <= index < end]
    if wrong:
        raise ValueError(
            f"initial states {wrong} of {spec.name}; there are 0..{spec.num_init_states - 1}"
        )
    return [
        Episode(task_id, index, seed + spec.seed_offset + index)
        for task_id in tasks
        for index in init_states
    ]
