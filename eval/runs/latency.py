"""What a slow policy costs: episodes against a clock that does not stop while the policy thinks.

The clock counts control steps. A policy of latency L sees the world at one step and answers L steps
later; in between the robot does what it was told before, or holds its pose.
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

from eval.client import episode
from eval.client.episode import row_to_action
from eval.pictures import needed
from eval.robot.realtime import ChunkStream
from eval.simulators.host import open_environment
from eval.simulators.workers import WorkerCrashError, WorkerPool
from eval.tasks.spec import Episode, TaskSpec

from .statistics import wilson_interval


class SteppedSimulator:
    """Inside the worker: the environment of one task at a time.

    Args:
        spec: protocol of the episodes.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self._env: Any = None
        self._task_id: int | None = None

    def reset(self, episode: Episode) -> NDArray[np.float32]:
        """As `World.reset`: what the row has the first query say of the robot."""
        if self._task_id != episode.task_id:
            if self._env is not None:
                self._env.close()
            self._env, self._task_id = None, None
            self._env = open_environment(self._spec, episode.task_id)
            self._task_id = episode.task_id
        self._env.reset(episode.init_state, episode.seed)
        return self.observe()["proprio"]

    def observe(self) -> dict[str, Any]:
        """As `World.observe`."""
        profile, raw = self._spec.client, self._env.observe()
        return {
            "images": episode.pictures(profile, raw),
            "instruction": self._env.instruction,
            "proprio": episode.proprio(profile, raw).astype(np.float32),
            "domain_id": profile.domain_id,
        }

    def step(self, row: NDArray[np.float32]) -> bool:
        """As `World.step`."""
        return self._env.step(row_to_action(self._spec.client, row))


class WorkerWorld:
    """In our process: a `World` whose simulator runs in a worker; a context manager.

    Args:
        spec: protocol of the episodes.

    Raises:
        SimulatorSetupError: this machine cannot run the simulator.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self._pool = WorkerPool(functools.partial(SteppedSimulator, spec), 1)

    def __enter__(self) -> WorkerWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def reset(self, episode: Any) -> NDArray[np.float32]:
        """As `World.reset`."""
        return self._call("reset", episode)

    def observe(self) -> Mapping[str, Any]:
        """As `World.observe`."""
        return self._call("observe")

    def step(self, row: NDArray[np.float32]) -> bool:
        """As `World.step`."""
        return self._call("step", row)

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pool.send(0, method, *arguments)
        ((_, value),) = self._pool.wait()
        if isinstance(value, WorkerCrashError):
            raise value
        return value


_POINTS = ((0, 3), (10, 13))  # columns of the arms' positions


class World(Protocol):
    """One environment, step by step."""

    def reset(self, episode: Any) -> NDArray[np.float32]:
        """Starts an episode; the present pose as an action row [D], held until there is one."""
        ...

    def observe(self) -> Mapping[str, Any]:
        """An observation of door 2; its proprio is read at the first query only."""
        ...

    def step(self, row: NDArray[np.float32]) -> bool:
        """Carries out an action row [D]; whether the task is solved now."""
        ...


@dataclass(frozen=True)
class Drive:
    """Outcome of one episode.

    Attributes:
        success: whether the task was solved at some step.
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
    """One episode at a latency.

    Args:
        world: environment.
        policy: anything with `act` of door 2.
        stream: how chunks follow one another; it is reset.
        episode: for the environment.
        latency: control steps from an observation to the answer.
        step_limit: control steps after which the episode has failed.
        seed_of: seed of the policy's noise by number of the query.
    """
    row = world.reset(episode)
    observation = world.observe()
    stream.reset(observation["proprio"])
    due, chunk = 0, None
    queries = held = 0
    largest = 0.0
    for step in range(step_limit):
        if chunk is not None and step >= due:
            stream.answer(chunk)
            chunk = None
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
    """Success of each strategy at each latency, on the same episodes with the same seeds.

    Args:
        worlds: environments that run beside each other; the policy is asked by one at a time.
        policy: anything with `act` of door 2.
        streams: by name of the line in the table; each call makes one for an episode.
        episodes: for the environments.
        latencies: control steps.
        step_limit: control steps after which an episode has failed.
        seed_of: seed of the noise by episode and number of the query.
        on_cell: told of every cell as it is done.

    Returns:
        name -> latency -> `summary`.
    """
    free: queue.Queue[World] = queue.Queue()
    for world in worlds:
        free.put(world)
    asked = _OneAtATime(policy)
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    with ThreadPoolExecutor(len(worlds)) as threads:
        for name, make in streams.items():
            for latency in latencies:

                def one(episode: Any, make: Any = make, latency: int = latency) -> Drive:
                    world = free.get()
                    try:
                        return drive(
                            world,
                            asked,
                            make(),
                            episode,
                            latency=latency,
                            step_limit=step_limit,
                            seed_of=lambda query: seed_of(episode, query),
                        )
                    finally:
                        free.put(world)

                cell = summary(list(threads.map(one, episodes)))
                cells.setdefault(name, {})[latency] = cell
                on_cell(name, latency, cell)
    return cells


class _OneAtATime:
    """A policy that several threads ask."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._lock = threading.Lock()

    def act(
        self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        with self._lock:
            return self._policy.act(observations, seed=seed)


def _way(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    return max(float(np.linalg.norm(after[a:b] - before[a:b])) for a, b in _POINTS)


def summary(drives: Sequence[Drive]) -> dict[str, Any]:
    """A cell of the table, in plain values: rate of success with its 95 % interval, and means."""
    wins = sum(one.success for one in drives)
    low, high = wilson_interval(wins, len(drives))
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
    """Success against latency, a line for each strategy with its interval, as a PNG file.

    Args:
        cells: strategy -> latency -> `summary`.
        path: of the file.
        title: of the picture.
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
