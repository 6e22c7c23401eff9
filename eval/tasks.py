"""What each benchmark asks of a policy and of its client, one row per task or suite.

A row is a protocol: two rows may share scenes and differ in step limit. `faithful` rows repeat what
the authors' clients do, so that published numbers can be compared. A new benchmark is a new row
(and an adapter for its simulator); code elsewhere asks columns, never names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence


@dataclass(frozen=True)
class View:
    """One camera: its name in the action contract and in the simulator, and how it is turned."""

    name: str
    camera: str
    flip_rows: bool
    flip_columns: bool


@dataclass(frozen=True)
class TaskSpec:
    """Protocol of one task or suite.

    Attributes:
        name: key of the row.
        benchmark: adapter that runs it.
        suite: the benchmark's own name of the set of tasks.
        task_ids: which tasks of the suite.
        num_init_states: how many official initial states each task has.
        domain_id: soft prompt and per-domain linears of the released checkpoint.
        views: cameras in the order of the model's view slots.
        rotation: 6-D layout of the policy, "contiguous" or "interleaved".
        action_width: numbers per action row (20: two arms of 10).
        executed: rows of a chunk that are carried out before the next query.
        stride: every how many rows of a chunk one is carried out.
        feedback_channels: leading channels of proprio that the last executed row replaces after a
            query; the first query has the measured pose. 0 keeps the first proprio for ever.
        gripper_threshold: probabilities above it mean closed.
        gripper_closed: what the simulator wants for closed; open is its negative.
        step_limit: control steps after which an episode has failed.
        settle_steps: control steps at rest before the first observation.
        control_hz: control steps in a second of simulation.
        image_size: side of the square camera images in pixels.
        msaa_samples: anti-aliasing; part of how images look. 0 is quicker on software renderers.
        fresh_env: build a new simulator for each episode, as the authors' client does. Otherwise
            one is reset softly: far quicker, the same states and images where no fixture is placed
            at random.
        displacement: metres; the object to pick up is moved from its official place by up to this
            much in x and in y, by the episode's seed. 0 in every benchmark's own protocol.
        anchor_hz: actions of a chunk per second in the data that the policy was trained on.
        proprio: what the policy is told of the robot: "commanded" (the last executed row),
            "measured" or "zero".
        seed_offset: added to seed + index of the initial state to seed the simulator.
    """

    name: str
    benchmark: str
    suite: str
    task_ids: tuple[int, ...]
    num_init_states: int
    domain_id: int
    views: tuple[View, ...]
    rotation: str
    action_width: int
    executed: int
    stride: int
    feedback_channels: int
    gripper_threshold: float
    gripper_closed: float
    step_limit: int
    settle_steps: int
    control_hz: int
    image_size: int
    msaa_samples: int
    fresh_env: bool
    displacement: float
    anchor_hz: float
    proprio: str
    seed_offset: int


def task_contract(spec: TaskSpec) -> dict[str, Any]:
    """The action conventions of a row, to be compared with a checkpoint's contract."""
    return {
        "domain_id": spec.domain_id,
        "rotation_layout": spec.rotation,
        "anchor_hz": spec.anchor_hz,
        "views": tuple(view.name for view in spec.views),
        "proprio": spec.proprio,
        "relative_channels": (),
    }


@dataclass(frozen=True)
class Episode:
    """One attempt. `init_state` -1 lets the benchmark place the objects by `seed`."""

    task_id: int
    init_state: int
    seed: int


# Official initial states that demonstrations may start from, and those kept for evaluation.
TRAINING_STATES = tuple(range(30))
HELD_OUT_STATES = tuple(range(30, 50))

# The simulator's agentview arrives bottom row first; the client turns it by 180 degrees, which
# makes it upright and mirrored. The wrist image is passed on as it comes.
_LIBERO_VIEWS = (
    View("agentview", "agentview", flip_rows=True, flip_columns=True),
    View("wrist", "robot0_eye_in_hand", flip_rows=False, flip_columns=False),
)


def _libero(suite: str, num_tasks: int, step_limit: int) -> TaskSpec:
    return TaskSpec(
        name=suite,
        benchmark="libero",
        suite=suite,
        task_ids=tuple(range(num_tasks)),
        num_init_states=50,
        domain_id=3,
        views=_LIBERO_VIEWS,
        rotation="contiguous",
        action_width=20,
        executed=30,
        stride=1,
        feedback_channels=9,
        gripper_threshold=0.5,
        gripper_closed=1.0,
        step_limit=step_limit,
        settle_steps=10,
        control_hz=20,
        image_size=256,
        msaa_samples=4,
        fresh_env=True,
        displacement=0.0,
        anchor_hz=30.0,  # nominal: X-VLA's reader takes the 20 Hz recordings for 30 Hz
        proprio="commanded",
        seed_offset=100,
    )


# "pick up the bbq sauce and place it in the basket": a slim bottle, which forgives the gripper
# 1.5 cm. The official initial states move the bottle by 1 cm at most, so that one recorded motion,
# played back blindly, solves all of them. The displacement makes a policy look.
_QUICKSTART = TaskSpec(
    name="quickstart",
    benchmark="libero",
    suite="libero_object",
    task_ids=(3,),
    num_init_states=50,
    domain_id=3,
    views=_LIBERO_VIEWS,
    rotation="contiguous",
    action_width=20,
    executed=30,
    stride=1,
    feedback_channels=9,
    gripper_threshold=0.5,
    gripper_closed=1.0,
    step_limit=150,
    settle_steps=10,
    control_hz=20,
    image_size=128,
    msaa_samples=0,
    fresh_env=False,
    displacement=0.03,
    anchor_hz=20.0,
    proprio="commanded",
    seed_offset=100,
)

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _libero("libero_spatial", 10, 800),
        _libero("libero_object", 10, 800),
        _libero("libero_goal", 10, 800),
        _libero("libero_10", 10, 900),
        _libero("libero_90", 90, 800),
        _QUICKSTART,
    )
}


def task_spec(name: str) -> TaskSpec:
    """The row called `name`.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; eval/tasks.py has {', '.join(sorted(TASKS))}")
    return TASKS[name]


def episodes(spec: TaskSpec, *, init_states: Sequence[int], seed: int) -> list[Episode]:
    """One episode for each task of the row and each of the initial states.

    Raises:
        ValueError: an initial state that the tasks do not have.
    """
    wrong = [index for index in init_states if not 0 <= index < spec.num_init_states]
    if wrong:
        raise ValueError(
            f"initial states {wrong} of {spec.name}; there are 0..{spec.num_init_states - 1}"
        )
    return [
        Episode(task_id, index, seed + spec.seed_offset + index)
        for task_id in spec.task_ids
        for index in init_states
    ]
