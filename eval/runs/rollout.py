"""Closed-loop evaluation: many episodes, several simulators at once, one batched policy.

An episode runs in three moves, which `_PolicyRollout` repeats for all workers side by side:

1. `start`: a worker resets its simulator to the episode's initial state and returns the first
   observation.
2. `Policy.act`: all observations that are ready make one batch; each gets an action chunk.
3. `advance`: a worker carries out as many actions of its chunk as the row says, and returns the
   next observation, or the end of the episode.

A worker is a process with an `eval.simulators.host.SimulatorHost`.
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Protocol, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.simulators.host import Progress, Replay, SimulatorHost
from eval.simulators.workers import WorkerCrashError, WorkerPool, python_of, refuse_second, run_jobs
from eval.tasks.spec import Episode, TaskSpec

from .traces import Trace

_LOG = logging.getLogger(__name__)


class Policy(Protocol):
    """Door 2: observations to action chunks; `seed[i]` alone decides the noise of chunk i."""

    def act(
        self, observations: Sequence[dict[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """Returns actions float32[B, T, D], postprocessed."""
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one episode.

    Attributes:
        episode: task, initial state and seed.
        instruction: text that the policy got; "" where the simulator crashed before it.
        success: True where the task was solved at some step.
        success_at_end: success after the last step, by the simulator; None after an error.
        steps: control steps carried out.
        queries: calls of the policy, 0 for the scripted expert.
        seconds: wall time, with other episodes running beside it.
        state_hash: of the initial state.
        rows: actions carried out, float32[steps, D].
        chunks: answers of the policy, each with the step at which it was asked.
        score: the adapter's own, in the unit of the row; None where it has none, 0 after an error.
        error: of the second crash of the simulator, or None; such an episode counts as failed.
    """

    episode: Episode
    instruction: str
    success: bool
    success_at_end: bool | None
    steps: int
    queries: int
    seconds: float
    state_hash: str
    rows: NDArray[np.float32]
    chunks: Sequence[tuple[int, NDArray[np.float32]]]
    score: float | None
    error: str | None

    def trace(self) -> Trace:
        """Returns what is needed to film the episode later."""
        chunks = [chunk for _, chunk in self.chunks]
        return Trace(
            episode=self.episode,
            success=self.success,
            rows=self.rows,
            chunks=np.stack(chunks) if chunks else np.zeros((0, 0, 0), np.float32),
            asked_at=np.array([step for step, _ in self.chunks], np.int64),
            path=np.zeros((0, 0), np.float32),
        )


OnResult = Callable[[EpisodeResult], None]


def simulator_pool(spec: TaskSpec, num_workers: int, *, python: str | None = None) -> WorkerPool:
    """Starts workers for the episodes of one row; each takes about 2 GB of memory with LIBERO.

    Args:
        spec: the row.
        num_workers: simulators at once.
        python: of the simulator; None for that of the benchmark's variable, else this one.
    """
    host = functools.partial(SimulatorHost, spec)
    return WorkerPool(host, num_workers, python=python_of(spec.benchmark, python))


def query_seed(episode_seed: int, query: int) -> int:
    """Seed of the policy's noise at one query: 31 bits of the episode's seed and the number."""
    return int(np.random.SeedSequence((episode_seed, query)).generate_state(1)[0] >> 1)


def rollout(
    policy: Policy,
    spec: TaskSpec,
    episodes: Sequence[Episode],
    *,
    pool: WorkerPool,
    on_result: OnResult | None = None,
) -> list[EpisodeResult]:
    """Evaluates a policy: one call of `act` for all simulators that need a chunk.

    Outcomes do not depend on the number of workers, as long as the policy's answer to an
    observation does not depend on the others in the batch.

    Args:
        policy: see `Policy`.
        spec: protocol of the row.
        episodes: results come in this order.
        pool: simulators, see `simulator_pool`.
        on_result: takes each episode as it ends.

    Raises:
        SimulatorSetupError: this machine cannot run the simulator.
        WorkerError: a simulator raised.
    """
    return _PolicyRollout(policy, spec, episodes, pool, on_result).run()


def text_sources(pool: WorkerPool, plan: Sequence[Episode]) -> Mapping[str, Mapping[str, Any]]:
    """Asks a simulator's process for the instructions of a plan's tasks, and their sources.

    Returns:
        Task index as text -> source, as the adapter notes it; empty where there is only one.

    Raises:
        WorkerError: a task file does not fit its suite, or the process ended.
    """
    task_ids = sorted({episode.task_id for episode in plan})
    ((_, answer),) = run_jobs(pool, [("text_sources", (task_ids,))])
    if isinstance(answer, WorkerCrashError):
        raise answer
    return answer


def expert_rollout(
    spec: TaskSpec,
    episodes: Sequence[Episode],
    *,
    pool: WorkerPool,
    on_result: OnResult | None = None,
) -> list[EpisodeResult]:
    """Evaluates the scripted expert, which runs inside the workers; otherwise as `rollout`."""
    results: dict[int, EpisodeResult] = {}
    for index, attempt in run_jobs(pool, [("attempt_by_expert", (e,)) for e in episodes]):
        episode = episodes[index]
        if isinstance(attempt, WorkerCrashError):
            results[index] = _failed(episode, attempt, spec)
        else:
            results[index] = EpisodeResult(
                episode=episode,
                instruction=attempt.instruction,
                success=attempt.success,
                success_at_end=attempt.success,
                steps=attempt.steps,
                queries=0,
                seconds=attempt.seconds,
                state_hash=attempt.state_hash,
                rows=attempt.rows,
                chunks=(),
                score=attempt.score,
                error=None,
            )
        if on_result is not None:
            on_result(results[index])
    return [results[index] for index in range(len(episodes))]


def film(trace: Trace, *, pool: WorkerPool, every: int) -> Replay | None:
    """Repeats a finished episode and films it, a frame every `every` control steps.

    Returns None where the repetition ended differently, and logs it.
    """
    job = ("replay", (trace.episode, trace.rows, every))
    ((_, replayed),) = run_jobs(pool, [job])
    if isinstance(replayed, WorkerCrashError) or replayed.success != trace.success:
        _LOG.warning("no film of %s: the repetition ended differently", trace.episode)
        return None
    return replayed


class _Slot:
    """One episode in progress, on one worker; `observation` is set while it waits for a chunk."""

    def __init__(self, index: int, episode: Episode) -> None:
        self.index = index
        self.episode = episode
        self.began = time.monotonic()
        self.observation: dict[str, Any] | None = None
        self.queries = 0
        self.steps = 0
        self.instruction = ""
        self.rows: list[NDArray[np.float32]] = []
        self.chunks: list[tuple[int, NDArray[np.float32]]] = []


class _PolicyRollout:
    """The loop behind `rollout`; a slot holds the episode of each busy worker."""

    def __init__(
        self,
        policy: Policy,
        spec: TaskSpec,
        episodes: Sequence[Episode],
        pool: WorkerPool,
        on_result: OnResult | None,
    ) -> None:
        self._policy = policy
        self._spec = spec
        self._episodes = episodes
        self._pool = pool
        self._on_result = on_result
        self._waiting = list(range(len(episodes)))[::-1]  # popped from the end
        self._crashed: list[int] = []  # episodes whose worker died once
        self._slots: dict[int, _Slot] = {}  # by worker
        self._moving: list[int] = []  # workers in the middle of a chunk
        self._results: dict[int, EpisodeResult] = {}

    def run(self) -> list[EpisodeResult]:
        """Repeats the three moves until every episode has a result."""
        while len(self._results) < len(self._episodes):
            self._start_episodes()
            # Answer now, unless other observations come so soon that they can share the call.
            ready = [w for w, slot in self._slots.items() if slot.observation is not None]
            if ready and not self._worth_waiting(len(ready)):
                self._query(sorted(ready))
            # Simulators run meanwhile; a reply has the next observation or ends its episode.
            for worker, reply in self._pool.wait():
                self._handle(worker, reply)
        return [self._results[index] for index in range(len(self._episodes))]

    def _start_episodes(self) -> None:
        for worker in range(len(self._pool)):
            if self._waiting and worker not in self._slots:
                index = self._waiting.pop()
                self._slots[worker] = _Slot(index, self._episodes[index])
                self._pool.send(worker, "start", self._episodes[index])

    def _worth_waiting(self, num_ready: int) -> bool:
        """Returns True where busy simulators will soon join the batch.

        Larger batches cost less per observation, but a policy must not idle through a reset.
        """
        if self._spec.fresh_env:  # a reset takes seconds, so only those in mid-chunk count
            return bool(self._moving)
        return num_ready < len(self._slots)

    def _query(self, workers: Sequence[int]) -> None:
        slots = [self._slots[worker] for worker in workers]
        observations = [slot.observation or {} for slot in slots]
        # By episode and query, so that the noise does not depend on who else is in the batch.
        seeds = [query_seed(slot.episode.seed, slot.queries) for slot in slots]
        chunks = self._policy.act(observations, seed=seeds)
        if len(chunks) != len(slots):
            raise ValueError(
                f"the policy returned {len(chunks)} chunks for {len(slots)} observations"
            )
        for worker, slot, chunk in zip(workers, slots, chunks):
            slot.chunks.append((slot.steps, np.asarray(chunk, np.float32)))
            slot.queries += 1
            slot.observation = None
            self._moving.append(worker)
            self._pool.send(worker, "advance", chunk)

    def _handle(self, worker: int, reply: Progress | WorkerCrashError) -> None:
        slot = self._slots[worker]
        if worker in self._moving:
            self._moving.remove(worker)
        if isinstance(reply, WorkerCrashError):
            # The pool has replaced the worker. One crash may be a flaw of OpenGL: try once more.
            del self._slots[worker]
            if slot.index in self._crashed:
                refuse_second(reply)
                self._finish(slot, _failed(slot.episode, reply, self._spec, slot.queries))
            else:
                _LOG.warning("%s: trying the episode once more", reply)
                self._crashed.append(slot.index)
                self._waiting.append(slot.index)
            return
        slot.rows.append(reply.rows)
        slot.observation = reply.observation
        if reply.observation is None:
            del self._slots[worker]
            self._finish(slot, _finished(slot, reply))
        else:
            slot.steps = reply.steps
            slot.instruction = slot.instruction or reply.observation["instruction"]

    def _finish(self, slot: _Slot, result: EpisodeResult) -> None:
        self._results[slot.index] = result
        if self._on_result is not None:
            self._on_result(result)


def _finished(slot: _Slot, progress: Progress) -> EpisodeResult:
    return EpisodeResult(
        episode=slot.episode,
        instruction=slot.instruction,
        success=progress.success,
        success_at_end=progress.success,  # an episode ends at its first success
        steps=progress.steps,
        queries=slot.queries,
        seconds=time.monotonic() - slot.began,
        state_hash=progress.state_hash,
        rows=np.concatenate(slot.rows),
        chunks=slot.chunks,
        score=progress.score,
        error=None,
    )


def _failed(
    episode: Episode, crash: WorkerCrashError, spec: TaskSpec, queries: int = 0
) -> EpisodeResult:
    return EpisodeResult(
        episode=episode,
        instruction="",
        success=False,
        success_at_end=None,
        steps=0,
        queries=queries,
        seconds=0.0,
        state_hash="",
        rows=np.zeros((0, 0), np.float32),
        chunks=(),
        score=0.0 if spec.score else None,
        error=str(crash),
    )


class MeteredPolicy:
    """A policy whose calls are noted.

    Args:
        policy: the policy itself.
        on_call: takes the arguments of `CallLog.add`, after each call.
    """

    def __init__(self, policy: Policy, on_call: Callable[[int, float, bool], None]) -> None:
        self._policy = policy
        self._on_call = on_call
        self._seen: set[int] = set()

    def act(
        self, observations: Sequence[dict[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """Calls the policy and notes how long it took."""
        began = time.perf_counter()
        chunks = np.asarray(self._policy.act(observations, seed=seed))  # waits for the device
        milliseconds = 1000 * (time.perf_counter() - began)
        batch = len(observations)
        self._on_call(batch, milliseconds, batch not in self._seen)
        self._seen.add(batch)
        return chunks
