"""Closed-loop evaluation: many episodes, several simulators at once, one batched policy."""

from __future__ import annotations

import functools
import io
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Protocol, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.files import write_bytes
from eval.simulators.host import Replay, SimulatorHost
from eval.simulators.workers import WorkerCrashError, WorkerPool, run_jobs
from eval.tasks.spec import Episode, TaskSpec

_PERCENTILES = (50, 90, 99)


class Policy(Protocol):
    """Door 2: observations to action chunks; `seed[i]` alone decides the noise of observation i."""

    def act(
        self, observations: Sequence[dict[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """Actions float32[B, T, D], postprocessed."""
        ...


@dataclass
class CallLog:
    """Calls in order.

    Attributes:
        batches: observations in each.
        milliseconds: wall time of each.
        first: whether a call was the first with its batch size in its process, which may compile.
    """

    batches: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    first: list[bool] = field(default_factory=list)

    def add(self, batch: int, milliseconds: float, first: bool) -> None:
        """Notes one call."""
        self.batches.append(batch)
        self.milliseconds.append(round(milliseconds, 1))
        self.first.append(first)

    def extend(self, batches: list[int], milliseconds: list[float], first: list[bool]) -> None:
        """Notes the calls of another log."""
        self.batches += batches
        self.milliseconds += milliseconds
        self.first += first

    def summary(self, num_workers: int) -> dict[str, Any]:
        """Plain values; percentiles and fill are None where nothing was called.

        Batch fill is the share of the simulators whose observation was in the batch, in the mean.
        Percentiles leave out the first calls.
        """
        warm = [m for m, first in zip(self.milliseconds, self.first) if not first]
        p50, p90, p99 = np.percentile(warm, _PERCENTILES).tolist() if warm else (None, None, None)
        calls = len(self.batches)
        return {
            "calls": calls,
            "observations": sum(self.batches),
            "batch_fill": sum(self.batches) / (calls * num_workers) if calls else None,
            "latency_ms": {"p50": p50, "p90": p90, "p99": p99},
            "batches": self.batches,
            "milliseconds": self.milliseconds,
            "first": self.first,
        }


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
        """As the policy's own."""
        began = time.perf_counter()
        chunks = np.asarray(self._policy.act(observations, seed=seed))  # waits for the device
        milliseconds = 1000 * (time.perf_counter() - began)
        batch = len(observations)
        self._on_call(batch, milliseconds, batch not in self._seen)
        self._seen.add(batch)
        return chunks


@dataclass(frozen=True)
class Trace:
    """Actions of one episode.

    Attributes:
        episode: which one.
        success: how it ended.
        rows: actions carried out, float32[n, D].
        chunks: what the policy answered, float32[Q, T, D]; Q is 0 for the scripted expert.
        asked_at: steps at which it was asked, int64[Q].
        path: measured proprio, float32[f, D]; f is 0 until the episode has been filmed.
    """

    episode: Episode
    success: bool
    rows: NDArray[np.float32]
    chunks: NDArray[np.float32]
    asked_at: NDArray[np.int64]
    path: NDArray[np.float32]

    def placed(self) -> Trace:
        """For a row with relative positions: each answer where its first row went.

        The path is that of the commands, as the proprio of such a row is no place.
        """
        asked = self.asked_at[self.asked_at < len(self.rows)]
        chunks = self.chunks[: len(asked)].copy()
        chunks[..., :3] += (self.rows[asked, :3] - chunks[:, 0, :3])[:, None]
        return replace(self, chunks=chunks, path=self.rows)


def save_trace(path: Path, trace: Trace) -> None:
    """Writes an npz file that appears under `path` only when it is complete."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        episode=np.array([trace.episode.task_id, trace.episode.init_state, trace.episode.seed]),
        success=np.array(trace.success),
        rows=trace.rows,
        chunks=trace.chunks,
        asked_at=trace.asked_at,
        path=trace.path,
    )
    write_bytes(path, file.getvalue())


def load_trace(path: Path) -> Trace:
    """Inverse of `save_trace`."""
    with np.load(str(path)) as file:
        return Trace(
            episode=Episode(*(int(number) for number in file["episode"])),
            success=bool(file["success"]),
            rows=file["rows"],
            chunks=file["chunks"],
            asked_at=file["asked_at"],
            path=file["path"],
        )


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one episode.

    Attributes:
        episode: what was tried.
        instruction: what the policy was told; "" where the simulator never came so far.
        success: whether the task was solved at some step.
        success_at_end: whether the simulator said so after the last step; None after an error.
        steps: control steps carried out.
        queries: calls of the policy, 0 for the scripted expert.
        seconds: wall time, other episodes going on beside it.
        state_hash: of the initial state.
        rows: actions carried out, float32[steps, D].
        chunks: what the policy answered, each with the step at which it was asked.
        score: the adapter's own, in the unit of the row; None where it has none, 0 after an error.
        error: why the simulator gave up twice, or None; such an episode counts as failed.
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
        """What is kept to film the episode."""
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


def simulator_pool(spec: TaskSpec, num_workers: int) -> WorkerPool:
    """Workers for the episodes of one row; each takes about 2 GB of memory with LIBERO."""
    return WorkerPool(functools.partial(SimulatorHost, spec), num_workers)


def query_seed(episode_seed: int, query: int) -> int:
    """Seed of the policy's noise at one query: 31 bits that depend on nothing else."""
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
        episodes: what to try; results come in this order.
        pool: simulators, see `simulator_pool`.
        on_result: takes each episode as it ends.

    Raises:
        SimulatorSetupError: this machine cannot run the simulator.
        WorkerError: a simulator raised.
    """
    return _PolicyRollout(policy, spec, episodes, pool, on_result).run()


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

    None where the repetition came out differently (logged).
    """
    job = ("replay", (trace.episode, trace.rows, every))
    ((_, replayed),) = run_jobs(pool, [job])
    if isinstance(replayed, WorkerCrashError) or replayed.success != trace.success:
        _LOG.warning("no film of %s: the repetition came out differently", trace.episode)
        return None
    return replayed


class _Slot:
    """One episode in progress, on one worker."""

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
        self._waiting = list(range(len(episodes)))[::-1]
        self._crashed: list[int] = []
        self._slots: dict[int, _Slot] = {}
        self._moving: list[int] = []  # workers in the middle of a chunk
        self._results: dict[int, EpisodeResult] = {}

    def run(self) -> list[EpisodeResult]:
        while len(self._results) < len(self._episodes):
            self._start_episodes()
            ready = [w for w, slot in self._slots.items() if slot.observation is not None]
            if ready and not self._worth_waiting(len(ready)):
                self._query(sorted(ready))
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
        """Whether simulators that are at work now will soon join the batch."""
        if self._spec.fresh_env:  # a reset takes seconds, so only those in mid-chunk count
            return bool(self._moving)
        return num_ready < len(self._slots)

    def _query(self, workers: Sequence[int]) -> None:
        slots = [self._slots[worker] for worker in workers]
        observations = [slot.observation or {} for slot in slots]
        seeds = [query_seed(slot.episode.seed, slot.queries) for slot in slots]
        chunks = self._policy.act(observations, seed=seeds)
        if len(chunks) != len(slots):
            raise ValueError(f"the policy answered {len(slots)} observations by {len(chunks)}")
        for worker, slot, chunk in zip(workers, slots, chunks):
            slot.chunks.append((slot.steps, np.asarray(chunk, np.float32)))
            slot.queries += 1
            slot.observation = None
            self._moving.append(worker)
            self._pool.send(worker, "advance", chunk)

    def _handle(self, worker: int, reply: Any) -> None:
        slot = self._slots[worker]
        if worker in self._moving:
            self._moving.remove(worker)
        if isinstance(reply, WorkerCrashError):
            del self._slots[worker]
            if slot.index in self._crashed:
                self._finish(slot, _failed(slot.episode, reply, self._spec))
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


def _finished(slot: _Slot, progress: Any) -> EpisodeResult:
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


def _failed(episode: Episode, crash: WorkerCrashError, spec: TaskSpec) -> EpisodeResult:
    return EpisodeResult(
        episode=episode,
        instruction="",
        success=False,
        success_at_end=None,
        steps=0,
        queries=0,
        seconds=0.0,
        state_hash="",
        rows=np.zeros((0, 0), np.float32),
        chunks=(),
        score=0.0 if spec.score else None,
        error=str(crash),
    )
