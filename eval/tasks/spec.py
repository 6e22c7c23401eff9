"""What the task table's rows are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .profiles import ClientProfile

SUCCESS = "% success"
PROGRESS = "% progress"
CHAIN_LENGTH = "subtasks in a row"
UNITS = (SUCCESS, PROGRESS, CHAIN_LENGTH)


@dataclass(frozen=True)
class Reference:
    """A published result.

    Attributes:
        value: as published.
        unit: one of UNITS; only a success rate can be compared with the episodes of a receipt.
        source: who reports it, and over what.
    """

    value: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} of a reference; give one of {', '.join(UNITS)}")

    @property
    def rate(self) -> float | None:
        """Success rate in [0, 1]; None of another score."""
        return self.value / 100 if self.unit == SUCCESS else None


@dataclass(frozen=True)
class Scenario:
    """One of the settings that a suite of SimplerEnv is made of.

    Attributes:
        name: in result files.
        env: registered environment, or prepackaged task.
        make_kwargs: arguments of the environment beside its name, (key, value) pairs.
        robots: robot poses, each x, y (m) and a quaternion wxyz; an environment is made for each.
            Empty where the environment knows its own.
        objects: settings of the objects, in order, for every robot pose: the reset option's name
            and its value.
    """

    name: str
    env: str
    make_kwargs: tuple[tuple[str, Any], ...]
    robots: tuple[tuple[float, ...], ...]
    objects: tuple[tuple[str, Any], ...]

    @property
    def num_episodes(self) -> int:
        """Robot poses times object settings."""
        return max(len(self.robots), 1) * len(self.objects)


@dataclass(frozen=True)
class TaskSpec:
    """Protocol of one task or suite.

    Attributes:
        name: key of the row.
        benchmark: adapter that runs it; empty for a real robot, which has none here.
        suite: the benchmark's own name of the set of tasks.
        task_ids: which tasks of the suite, or which of `scenarios` or `task_names`.
        num_init_states: how many official initial states each task has.
        client: the policy's side.
        step_limit: control steps after which an episode (CALVIN: a subtask) has failed; 0 for a
            robot that a person stops.
        settle_steps: control steps at rest before the first observation.
        control_hz: control steps in a second of simulation.
        image_size: side of the square camera images in pixels; 0 where the simulator decides.
        msaa_samples: anti-aliasing; part of how images look. 0 is quicker on software renderers.
        fresh_env: build a new simulator for each episode, as the authors' client does. Otherwise
            one is reset softly: far quicker, the same states and images where no fixture is placed
            at random.
        displacement: metres; the object to pick up is moved from its official place by up to this
            much in x and in y, by the episode's seed. 0 in every benchmark's own protocol.
        seed_offset: added to seed + index of the initial state to seed the simulator.
        score: one of UNITS, of the score that the adapter has beside success or failure; empty
            where it has none.
        reference: published results of the released checkpoint under this protocol.
        scenarios: settings that task_ids count, where the suite is made of them.
        task_names: names that task_ids count, where the simulator takes names.
        instruction: what a robot without a simulator is told.
    """

    name: str
    benchmark: str
    suite: str
    task_ids: tuple[int, ...]
    num_init_states: int
    client: ClientProfile
    step_limit: int
    control_hz: float
    fresh_env: bool
    settle_steps: int = 0
    image_size: int = 0
    msaa_samples: int = 0
    displacement: float = 0.0
    seed_offset: int = 0
    score: str = ""
    reference: tuple[Reference, ...] = ()
    scenarios: tuple[Scenario, ...] = ()
    task_names: tuple[str, ...] = ()
    instruction: str = ""


@dataclass(frozen=True)
class Episode:
    """One attempt. `init_state` -1 lets the benchmark place the objects by `seed`."""

    task_id: int
    init_state: int
    seed: int


def task_contract(spec: TaskSpec) -> dict[str, Any]:
    """The action conventions of a row, to be compared with a checkpoint's contract."""
    client = spec.client
    return {
        "domain_id": client.domain_id,
        "rotation_layout": client.rotation,
        "anchor_hz": client.anchor_hz,
        "views": tuple(view.name for view in client.views),
        "proprio": client.proprio,
        "relative_channels": () if client.xyz_base is None else (0, 1, 2),
    }
