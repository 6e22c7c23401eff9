"""A row of the task table, an episode of it, and the adapter that runs it.

A row (`TaskSpec`) is a protocol in plain values: which tasks of a benchmark, from which initial
states, for how many control steps, and how the policy's client talks to both sides (its
`ClientProfile`). `eval.tasks.table.episodes` makes the `Episode`s of a row. The row's `benchmark`
names an adapter, an `Environment` of eval/simulators/, in which `SimulatorHost` runs them;
`eval.runs.rollout` has the policy answer. Code asks columns: nothing but the table of adapters
(`eval.simulators.host.ADAPTERS`) knows a benchmark by name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Mapping, Protocol

from numpy.typing import ArrayLike

from .profiles import ClientProfile, JointForm

# Units of scores: of published results, and of what an adapter measures beside success.
SUCCESS = "% success"
PROGRESS = "% progress"
CHAIN_LENGTH = "subtasks in a row"
UNITS = (SUCCESS, PROGRESS, CHAIN_LENGTH)

# Sources of an instruction, where a benchmark has two.
FILE_NAME = "file name"
TASK_FILE = "task file"


@dataclass(frozen=True)
class Reference:
    """A published result.

    Attributes:
        value: as published.
        unit: one of UNITS; only a success rate can be compared with the episodes of a receipt.
        source: publication or person, and the number of episodes.
    """

    value: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} of a reference; give one of {', '.join(UNITS)}")

    @property
    def rate(self) -> float | None:
        """Success rate in [0, 1], None for another unit."""
        return self.value / 100 if self.unit == SUCCESS else None


@dataclass(frozen=True)
class Scenario:
    """One setting of a suite that is made of several, as SimplerEnv's are.

    Attributes:
        name: in result files.
        env: registered environment, or prepackaged task.
        make_kwargs: arguments of the environment beside its name, (key, value) pairs.
        robots: robot poses, each x, y (m) and a quaternion wxyz; each has its own environment.
            Empty where the environment chooses the pose.
        objects: settings of the objects, for every robot pose: (name of the reset option, value).
    """

    name: str
    env: str
    make_kwargs: tuple[tuple[str, Any], ...]
    robots: tuple[tuple[float, ...], ...]
    objects: tuple[tuple[str, Any], ...]

    @property
    def num_episodes(self) -> int:
        """Number of episodes: robot poses times object settings."""
        return max(len(self.robots), 1) * len(self.objects)


@dataclass(frozen=True)
class Disturbance:
    """One thing that a row has otherwise than its control arm.

    Attributes:
        axis: key of `eval.disturbances.axes.AXES`.
        level: 0 changes nothing, higher levels change more.
        amount: of the change, 0 at level 0.
        unit: of the amount.
        same_state: True where episodes begin in the states of the control arm, by their hashes.
    """

    axis: str
    level: int
    amount: float
    unit: str
    same_state: bool


@dataclass(frozen=True)
class Override:
    """A column of a row to which a command gave another value.

    Attributes:
        column: key of `eval.tasks.variants.OVERRIDES`.
        own: the row's own value, None where the row leaves it to the policy.
        used: the value in its place.
    """

    column: str
    own: int | None
    used: int


@dataclass(frozen=True)
class TaskSpec:
    """A row of the task table: the protocol of one task or suite.

    Attributes:
        name: key of the row.
        benchmark: key of the adapter that runs it; empty for a real robot, which has none here.
        suite: the benchmark's own name of the set of tasks.
        task_ids: indices of tasks in the suite, or in `scenarios` or `task_names`.
        num_init_states: initial states of each task: the official ones, or those of `held_out`.
        held_out: first initial state that no demonstration starts from, where policies are trained
            on demonstrations of ours; evaluation starts there. States behind the official ones
            repeat the held-out official ones, each with a displacement of its own, or are drawn by
            their index. They have no end: `num_init_states` is how far an evaluation goes by
            itself.
        client: how the policy's client reads observations and writes actions.
        step_limit: control steps after which an episode (CALVIN: a subtask) has failed; 0 for a
            robot that a person stops.
        settle_steps: control steps at rest before the first observation.
        control_hz: control steps in a second of simulation.
        image_size: side of the square camera images in pixels; 0 where the simulator decides.
        msaa_samples: anti-aliasing; part of how images look. 0 is quicker on software renderers.
        fresh_env: build a new simulator for each episode, as the authors' client does. Otherwise
            one simulator is reset softly: far quicker, with the same states and images where no
            fixture is placed at random.
        displacement: metres; the object to pick up is moved from its official place by up to this
            much in x and in y, by the episode's seed. 0 in every benchmark's own protocol.
        seed_offset: added to seed + index of the initial state to seed the simulator.
        score: one of UNITS, for a score that the adapter has beside success; empty where it has
            none.
        reference: published results of the released checkpoint under this protocol.
        scenarios: settings that task_ids index, where the suite is made of them.
        task_names: names that task_ids index, where the simulator takes names.
        instruction: text for a robot without a simulator.
        text_source: LIBERO's instructions come from FILE_NAME, which published results were
            measured with, or TASK_FILE; empty where the simulator has one source.
        control: row to compare with, in which nothing is changed; empty where there is none.
        disturbance: change of scene, text or actions; None in every benchmark's own protocol.
        overrides: columns that a command changed.
        registered_limits: the limit that the benchmark's own files give a task ends an episode
            where it is below `step_limit`.
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
    held_out: int | None = None
    seed_offset: int = 0
    score: str = ""
    reference: tuple[Reference, ...] = ()
    scenarios: tuple[Scenario, ...] = ()
    task_names: tuple[str, ...] = ()
    instruction: str = ""
    text_source: str = ""
    control: str = ""
    disturbance: Disturbance | None = None
    overrides: tuple[Override, ...] = ()
    registered_limits: bool = False


@dataclass(frozen=True)
class Episode:
    """One attempt at a task. `init_state` -1 lets the benchmark place the objects by `seed`."""

    task_id: int
    init_state: int
    seed: int


class Environment(Protocol):
    """An adapter: one task of a benchmark in its simulator, episode after episode.

    It is built from a row and the index of a task. Numbers come as the simulator has them: the
    row's `ClientProfile` names the keys that the policy gets, and how its actions are written.
    """

    @property
    def instruction(self) -> str:
        """Text of the task; of a chain of subtasks, that of the present one."""
        ...

    @property
    def num_parts(self) -> int:
        """Subtasks of an episode; the row's step limit is for each."""
        ...

    @property
    def failed(self) -> bool:
        """True where the episode cannot succeed any more."""
        ...

    @property
    def renderer_name(self) -> str:
        """Name of the renderer, for receipts."""
        ...

    def reset(self, init_state: int, seed: int) -> str:
        """Starts an episode and returns a hash of its initial state."""
        ...

    def observe(self) -> Mapping[str, Any]:
        """Returns the simulator's observation: arrays by the names that `client.views` use."""
        ...

    def step(self, action: ArrayLike) -> bool:
        """Carries out an action in the simulator's own form; returns True when solved."""
        ...

    def score(self) -> float | None:
        """Returns the score of the episode so far in the row's unit, None without one."""
        ...

    def close(self) -> None:
        """Frees the simulator."""
        ...


def row_values(spec: TaskSpec) -> dict[str, Any]:
    """Returns the columns of a row as plain values, for journals and receipts.

    Variants of a row have two more columns; other rows are stored without them, as they were before
    there were variants.
    """
    return {
        column: value
        for column, value in asdict(spec).items()
        if value or column not in ("disturbance", "overrides")
    }


def task_contract(spec: TaskSpec) -> dict[str, Any]:
    """Returns the action conventions of a row, to compare with a checkpoint's contract."""
    client = spec.client
    contract: dict[str, Any] = {
        "domain_id": client.domain_id,
        "rotation_layout": client.rotation,
        "anchor_hz": client.anchor_hz,
        "views": tuple(view.name for view in client.views),
        "proprio": client.proprio,
        "relative_channels": () if client.xyz_base is None else (0, 1, 2),
        "unrecorded": (),  # tasks are solved with all channels of the arm
    }
    if isinstance(client.action, JointForm):
        contract["channels"] = tuple(asdict(joint) for joint in client.action.joints)
    return contract
