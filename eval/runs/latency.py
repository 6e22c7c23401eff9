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

from eval.client.episode import pictures, proprio
from eval.pictures import needed
from eval.robot.realtime import ChunkStream
from eval.simulators.host import SimulatorHost
from eval.simulators.workers import WorkerCrashError, WorkerPool, python_of
from eval.tasks.spec import Episode, TaskSpec

from .binomial import success_interval

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
class Drive:
    """Outcome of one episode.

    Attributes:
        success: True where the task was solved at some step.
        steps: control steps.
        queries: calls of the policy.
        held: control steps without an action.
        largest_step: longest way between two commanded positions in a row, m.
    """

    success: bool
    steps: int
    queries: int
    held: int
    largest_step: float


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
    row = world.reset(episode)  # held until the first answer
    observation = world.observe()
    stream.reset(observation["proprio"])
    due, chunk = 0, None
    queries = held = 0
    largest = 0.0
    for step in range(step_limit):
        if chunk is not None and step >= due:
            stream.answer(chunk)
            chunk = None
        # At most one query is under way: the stream wants none before the last is answered.
        if stream.wants_query:
            seen = world.observe() if queries else observation
            chunk = policy.act([stream.query(seen)], seed=[seed_of(queries)])[0]
            queries += 1
            due = step + latency
            if not latency:
                stream.answer(chunk)
                chunk = None
        taken = stream.take()
        if taken is None:
            held += 1
        else:
            largest = max(largest, _way(row, taken))
            row = taken
            stream.carried_out(row)
        if world.step(row):
            return Drive(True, step + 1, queries, held, largest)
    return Drive(False, step_limit, queries, held, largest)


def _way(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    return max(float(np.linalg.norm(after[a:b] - before[a:b])) for a, b in _POINTS)


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
    """Returns a cell of the table in plain values: success rate, its 95 % interval, and means."""
    wins = sum(one.success for one in drives)
    low, high = success_interval(wins, len(drives))
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
    }


def draw_curve(
    cells: Mapping[str, Mapping[int, Mapping[str, Any]]], path: Any, *, title: str
) -> None:
    """Draws success against latency, a line with intervals for each strategy, as a PNG file.

    Args:
        cells: strategy -> latency -> `summary`.
        path: of the file.
        title: above the axes.
    """
    canvas_of = needed("matplotlib.backends.backend_agg", "sim").FigureCanvasAgg
    figure_of = needed("matplotlib.figure", "sim").Figure

    figure = figure_of(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    apart = _apart(cells)
    for i, (name, row) in enumerate(cells.items()):
        at = sorted(row)
        rates = np.array([row[latency]["rate"] for latency in at])
        ends = np.array([[row[latency][end] for latency in at] for end in ("low", "high")])
        drawn_at = np.array(at) + apart * (i - (len(cells) - 1) / 2)
        axes.errorbar(drawn_at, rates, yerr=np.abs(ends - rates), marker="o", capsize=3, label=name)
    axes.set(xlabel="latency (control steps)", ylabel="success rate", ylim=(-0.03, 1.03))
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    canvas_of(figure).print_png(str(path))


def _apart(cells: Mapping[str, Mapping[int, Any]]) -> float:
    """Control steps between two lines, so that intervals at one latency do not hide each other."""
    latencies = [latency for row in cells.values() for latency in row]
    return 0.012 * (max(latencies, default=0) - min(latencies, default=0))


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
            "images": pictures(profile, raw),
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
