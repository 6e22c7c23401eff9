"""The price of latency: episodes against a clock that keeps running while the policy computes.

The clock counts control steps. A policy of latency L sees the world at one step and answers L steps
later; meanwhile the robot carries out the rest of its last chunk, or holds its pose. `drive` runs
one episode in a `World`, `curve` all episodes for each strategy and latency. `WorkerWorld` is a
simulator of the task table as a `World`.
"""

from __future__ import annotations

import functools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Protocol, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.client.episode import proprio, view_images
from eval.extras import needed
from eval.files import Form, fields, integer, listing
from eval.robot.realtime import ChunkStream
from eval.simulators.host import SimulatorHost
from eval.simulators.workers import WorkerCrashError, WorkerPool, python_of
from eval.tasks.spec import Episode, TaskSpec

from .binomial import success_interval
from .compare import Comparison, count_pairs

# Of a cell: mean, 95th percentile and largest, in mm or mm in a control step.
POSITION = "position_jump_mm"
VELOCITY = "velocity_jump_mm"
INSIDE = "velocity_change_inside_mm"
# Form of a cell in a file; `summary` has more.
_LENGTHS: Form = {"type": ["object", "null"]}
CELL: Form = fields(
    latency=integer(0, 10_000),
    episodes=integer(1, 10**6),
    rate={"type": "number"},
    low={"type": "number"},
    high={"type": "number"},
    outcomes=listing({"type": "boolean"}),
    **{POSITION: _LENGTHS, VELOCITY: _LENGTHS},
)
_POINTS = ((0, 3), (10, 13))  # columns of the arms' positions


class World(Protocol):
    """One environment, controlled step by step."""

    def reset(self, episode: Any) -> NDArray[np.float32]:
        """Starts an episode and returns the robot's pose as an action row [D]."""
        ...

    def observe(self) -> Mapping[str, Any]:
        """Returns an observation of door 2; its proprio is read at the first query only."""
        ...

    def step(self, row: NDArray[np.float32]) -> bool:
        """Carries out an action row [D] and returns True when the task is solved."""
        ...


@dataclass(frozen=True)
class Seam:
    """A control step at which a new chunk takes over.

    Attributes:
        position: from the position that would be commanded without the new chunk to the one that
            is, m. Where the last chunk has ended, the robot would hold its pose.
        velocity: change of the commanded velocity since the step before, m in a control step.
    """

    position: float
    velocity: float


@dataclass(frozen=True)
class Drive:
    """Outcome of one episode.

    Attributes:
        success: True where the task was solved at some step.
        steps: control steps.
        queries: calls of the policy.
        held: control steps without an action.
        largest_step: longest way between two commanded positions in a row, m.
        seams: one for each chunk but the first.
        inside: change of the commanded velocity at each step that is no seam, m in a control step.
    """

    success: bool
    steps: int
    queries: int
    held: int
    largest_step: float
    seams: tuple[Seam, ...] = ()
    inside: tuple[float, ...] = ()


def drive(
    world: World,
    policy: Any,
    stream: ChunkStream,
    episode: Any,
    *,
    latency: int,
    step_limit: int,
    seed_of: Callable[[int], int],
) -> Drive:
    """Runs one episode at a latency.

    Args:
        world: environment.
        policy: anything with `act` of door 2.
        stream: how chunks follow one another; it is reset.
        episode: for the environment.
        latency: control steps from an observation to the answer.
        step_limit: control steps after which the episode has failed.
        seed_of: seed of the policy's noise by number of the query.
    """
    path = [world.reset(episode)]  # commanded rows; the first is held until the first answer
    late = _LatePolicy(world, policy, stream, latency, seed_of)
    displaced: dict[int, NDArray[np.float32]] = {}  # by the index in `path` of what took its place
    held = 0
    success = False
    while not success and len(path) <= step_limit:
        instead = late.turn(len(path) - 1, path[-1])
        taken = stream.take()
        if taken is None:
            held += 1
        else:
            stream.carried_out(taken)
            if instead is not None:
                displaced[len(path)] = instead
        path.append(path[-1] if taken is None else taken)
        success = world.step(path[-1])
    ways = [_way(*rows) for rows in zip(path, path[1:])]
    seams, inside = _seams(path, displaced)
    return Drive(success, len(path) - 1, late.queries, held, max(ways), seams, inside)


class _LatePolicy:
    """A policy that answers a number of control steps after it was asked."""

    def __init__(
        self,
        world: World,
        policy: Any,
        stream: ChunkStream,
        latency: int,
        seed_of: Callable[[int], int],
    ) -> None:
        self._world = world
        self._policy = policy
        self._stream = stream
        self._latency = latency
        self._seed_of = seed_of
        self._observation = world.observe()
        # At most one answer is on its way: the stream wants no query before the last is answered.
        self._due: tuple[int, NDArray[np.float32]] | None = None
        self._answers = 0
        self.queries = 0
        stream.reset(self._observation["proprio"])

    def turn(self, step: int, row: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Answers and asks what is due at a step.

        Args:
            step: control steps so far.
            row: the last one commanded.

        Returns:
            The row that would be commanded at this step without an answer that came; None where
            none came, or the first one.
        """
        instead = self._answer(step, row)
        if self._stream.wants_query:
            seen = self._world.observe() if self.queries else self._observation
            seed = self._seed_of(self.queries)
            chunk = self._policy.act([self._stream.query(seen)], seed=[seed])[0]
            self.queries += 1
            self._due = step + self._latency, chunk
            if not self._latency:
                instead = self._answer(step, row)
        return instead

    def _answer(self, step: int, row: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if self._due is None or step < self._due[0]:
            return None
        following = self._stream.next_row()
        self._stream.answer(self._due[1])
        self._due = None
        self._answers += 1
        if self._answers == 1:
            return None
        return row if following is None else following


def _way(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    return max(float(np.linalg.norm(after[a:b] - before[a:b])) for a, b in _POINTS)


def _seams(
    path: Sequence[NDArray[np.float32]], displaced: Mapping[int, NDArray[np.float32]]
) -> tuple[tuple[Seam, ...], tuple[float, ...]]:
    """Returns the seams of a path of commanded rows, and the change of velocity between them."""
    seams, inside = [], []
    for i in range(2, len(path)):
        change = _way(2 * path[i - 1] - path[i - 2], path[i])
        if i in displaced:
            seams.append(Seam(_way(displaced[i], path[i]), change))
        else:
            inside.append(change)
    return tuple(seams), tuple(inside)


def curve(
    worlds: Sequence[World],
    policy: Any,
    streams: Mapping[str, Callable[[], ChunkStream]],
    episodes: Sequence[Any],
    *,
    latencies: Sequence[int],
    step_limit: int,
    seed_of: Callable[[Any, int], int],
    on_cell: Callable[[str, int, Mapping[str, Any]], None],
) -> dict[str, dict[int, dict[str, Any]]]:
    """Measures the success of each strategy at each latency, on the same episodes and seeds.

    Args:
        worlds: environments that run side by side; the policy answers one at a time.
        policy: anything with `act` of door 2.
        streams: name of the strategy -> makes a stream for an episode.
        episodes: for the environments.
        latencies: control steps.
        step_limit: control steps after which an episode has failed.
        seed_of: seed of the noise by episode and number of the query.
        on_cell: called with strategy, latency and summary as each cell is complete.

    Returns:
        name -> latency -> `summary`.
    """
    free: queue.Queue[World] = queue.Queue()
    for world in worlds:
        free.put(world)
    shared = _OneAtATime(policy)

    def run(make: Callable[[], ChunkStream], latency: int, episode: Any) -> Drive:
        world = free.get()
        try:
            return drive(
                world,
                shared,
                make(),
                episode,
                latency=latency,
                step_limit=step_limit,
                seed_of=functools.partial(seed_of, episode),
            )
        finally:
            free.put(world)

    cells: dict[str, dict[int, dict[str, Any]]] = {}
    with ThreadPoolExecutor(len(worlds)) as threads:
        for name, make in streams.items():
            for latency in latencies:
                drives = threads.map(functools.partial(run, make, latency), episodes)
                cell = summary(list(drives))
                cells.setdefault(name, {})[latency] = cell
                on_cell(name, latency, cell)
    return cells


class _OneAtATime:
    """A policy that several threads call, one after the other."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._lock = threading.Lock()

    def act(
        self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        with self._lock:
            return self._policy.act(observations, seed=seed)


def summary(drives: Sequence[Drive]) -> dict[str, Any]:
    """Returns a cell of the table in plain values: success, its 95 % interval, means and seams."""
    wins = sum(one.success for one in drives)
    low, high = success_interval(wins, len(drives))
    seams = [seam for one in drives for seam in one.seams]
    return {
        "episodes": len(drives),
        "successes": wins,
        "rate": wins / len(drives),
        "low": low,
        "high": high,
        "mean_steps": float(np.mean([one.steps for one in drives])),
        "mean_held": float(np.mean([one.held for one in drives])),
        "mean_queries": float(np.mean([one.queries for one in drives])),
        "largest_step_m": max(one.largest_step for one in drives),
        "seams": len(seams),
        POSITION: _in_mm([seam.position for seam in seams]),
        VELOCITY: _in_mm([seam.velocity for seam in seams]),
        INSIDE: _in_mm([change for one in drives for change in one.inside]),
        "outcomes": [one.success for one in drives],
    }


def _in_mm(metres: Sequence[float]) -> dict[str, float] | None:
    """Returns mean, 95th percentile and largest of some lengths; None of none."""
    if not metres:
        return None
    lengths = 1000 * np.asarray(metres)
    p95 = np.percentile(lengths, 95)
    return {"mean": float(lengths.mean()), "p95": float(p95), "worst": float(lengths.max())}


def paired(cell: Mapping[str, Any], other: Mapping[str, Any]) -> Comparison:
    """Counts the pairs of two cells on the same episodes."""
    return count_pairs(zip(cell["outcomes"], other["outcomes"]))


# Panels of the figure: heading, and the value of a cell; success has an interval.
_PANELS: Sequence[tuple[str, Callable[[Mapping[str, Any]], float]]] = (
    ("success rate", lambda cell: cell["rate"]),
    ("jump in position at a seam (mm)", lambda cell: _mean(cell[POSITION])),
    ("jump in velocity at a seam (mm/step)", lambda cell: _mean(cell[VELOCITY])),
)
_STYLES = ("-", "--", ":", "-.")  # by plan


def draw_curve(
    cells: Mapping[str, Mapping[int, Mapping[str, Any]]], path: Any, *, title: str
) -> None:
    """Draws success and seams against latency, a line for each strategy, as a PNG file.

    Args:
        cells: strategy, or "strategy, plan" -> latency -> `summary`. A strategy has a colour, a
            plan a style of line.
        path: of the file.
        title: above the axes.
    """
    canvas_of = needed("matplotlib.backends.backend_agg", "sim").FigureCanvasAgg
    figure_of = needed("matplotlib.figure", "sim").Figure

    figure = figure_of(figsize=(13.0, 4.2), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    # between two lines, so that intervals at one latency do not hide each other
    apart = 0.012 * max((latency for row in cells.values() for latency in row), default=0)
    strategies, plans = (list(dict.fromkeys(n.partition(", ")[i] for n in cells)) for i in (0, 2))
    for i, (name, row) in enumerate(cells.items()):
        strategy, _, plan = name.partition(", ")
        look = {
            "color": f"C{strategies.index(strategy)}",
            "linestyle": _STYLES[plans.index(plan) % len(_STYLES)],
            "marker": "o",
            "markersize": 4,
            "label": name,
        }
        at = sorted(row)
        drawn_at = np.array(at) + apart * (i - (len(cells) - 1) / 2)
        rates, *jumps = (np.array([value(row[latency]) for latency in at]) for _, value in _PANELS)
        ends = np.array([[row[latency][end] for latency in at] for end in ("low", "high")])
        panels[0].errorbar(drawn_at, rates, yerr=np.abs(ends - rates), capsize=3, **look)
        for axes, values in zip(panels[1:], jumps):
            axes.plot(at, values, **look)
    for axes, (heading, _) in zip(panels, _PANELS):
        axes.set(xlabel="latency (control steps)", ylabel=heading)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].legend()
    figure.suptitle(title)
    canvas_of(figure).print_png(str(path))


def _mean(lengths: Mapping[str, float] | None) -> float:
    return float("nan") if lengths is None else lengths["mean"]


class SteppedSimulator(SimulatorHost):
    """The `World` inside a worker: a host that is controlled step by step."""

    def reset(self, episode: Episode) -> NDArray[np.float32]:
        """Starts an episode, see `World.reset`."""
        self._reset(episode)
        return self.observe()["proprio"]

    def observe(self) -> dict[str, Any]:
        """Returns an observation, see `World.observe`."""
        profile, raw = self._spec.client, self._observe()
        return {
            "images": view_images(profile, raw),
            "instruction": self._env.instruction,
            "proprio": proprio(profile, raw).astype(np.float32),
            "domain_id": profile.domain_id,
        }

    def step(self, row: NDArray[np.float32]) -> bool:
        """Carries out an action row, see `World.step`."""
        return self._step(row)


class WorkerWorld:
    """A `World` whose simulator runs in a worker process; a context manager.

    Args:
        spec: protocol of the episodes.
        python: of the simulator, see `eval.runs.rollout.simulator_pool`.

    Raises:
        SimulatorSetupError: this machine cannot run the simulator.
    """

    def __init__(self, spec: TaskSpec, *, python: str | None = None) -> None:
        host = functools.partial(SteppedSimulator, spec)
        self._pool = WorkerPool(host, 1, python=python_of(spec.benchmark, python))

    def __enter__(self) -> WorkerWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def reset(self, episode: Any) -> NDArray[np.float32]:
        """Starts an episode, see `World.reset`."""
        return self._call("reset", episode)

    def observe(self) -> Mapping[str, Any]:
        """Returns an observation, see `World.observe`."""
        return self._call("observe")

    def step(self, row: NDArray[np.float32]) -> bool:
        """Carries out an action row, see `World.step`."""
        return self._call("step", row)

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pool.send(0, method, *arguments)
        ((_, value),) = self._pool.wait()
        if isinstance(value, WorkerCrashError):
            raise value
        return value
