"""A complete evaluation: rows of the task table, policies, golden frames, films and the receipt.

`Evaluation.run` opens the simulators of one row after the other, compares their golden frame, and
has a `_Contest` run the episodes of all policies on it. Finished episodes are in the journal, so an
evaluation that was stopped resumes with the same command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ContextManager, Mapping, Sequence

import numpy as np

from eval.files import write_bytes
from eval.pictures import encode_mp4
from eval.simulators.host import Description
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerPool
from eval.tasks.spec import Episode, TaskSpec, row_values

from .golden_frame import FOLDER, Verdict, check_simulator
from .journal import JOURNAL, Journal, JournalError
from .receipt import (
    SCHEMA,
    TaskRun,
    episode_key,
    episode_record,
    plan_key,
    receipt,
    wrong_text,
)
from .rollout import (
    EpisodeResult,
    MeteredPolicy,
    Policy,
    expert_rollout,
    film,
    rollout,
    simulator_pool,
    text_sources,
)
from .seal import digest, file_digest
from .shards import Shard
from .statistics import PairedStopping
from .traces import CallLog, load_trace, save_trace

# Folders in that of the evaluation; eval/runs/receipt.schema.json names them too.
FILMS = "films"
TRACES = "traces"
OUTCOMES = {True: "success", False: "failure"}

_FILM_EVERY = 2  # control steps between two frames
_SMALL = 256  # pixels; smaller images are enlarged in films
_PAIRS_PER_WORKER = 2  # that are run before the stopping rule looks at the outcomes

# Takes (episodes done, episodes in all, successes so far).
Show = Callable[[int, int, int], None]
# (title, episodes in all) -> a bar.
Progress = Callable[[str, int], ContextManager[Show]]
# (row, number of workers) -> simulators
OpenPool = Callable[[TaskSpec, int], WorkerPool]


@dataclass(frozen=True)
class Contestant:
    """A policy and its identity.

    Attributes:
        name: in tables.
        policy: None for the scripted expert, which runs inside the simulators' processes.
        identity: kind, source, hash of the parameters and contract, as plain values.
    """

    name: str
    policy: Policy | None
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A row to evaluate, and its episodes on all shards together."""

    spec: TaskSpec
    plan: Sequence[Episode]


@dataclass(frozen=True)
class Options:
    """Options of an evaluation.

    Attributes:
        num_workers: simulators at once.
        shard: this machine's part of the episodes.
        restart: forget the episodes in the journal.
        accept_renderer: evaluate although the first frame is not the golden one.
        alpha: level at which a comparison of two policies stops early; None runs all episodes.
        film: name of the policy to film, "" for none.
        golden_frames: folder of the stored frames.
        config: further plain values for the receipt.
        versions: of the policy's process.
        git: revision of the checkout.
    """

    num_workers: int
    shard: Shard
    restart: bool
    accept_renderer: bool
    alpha: float | None
    film: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    golden_frames: Path = FOLDER

    def __post_init__(self) -> None:
        if self.alpha is not None and self.shard.count > 1:
            raise ValueError(
                "--stop_early looks at all episodes so far, so it cannot run on a --shard"
            )


class Evaluation:
    """Runs every contestant on every task; finished episodes survive an interruption.

    Args:
        contestants: policies; exactly two with `options.alpha`.
        options: how to run.
        out: folder of journal, traces and films.
        progress: makes a bar.
        open_pool: makes the simulators; tests put fakes here.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        options: Options,
        out: Path,
        progress: Progress,
        open_pool: OpenPool = simulator_pool,
    ) -> None:
        if options.alpha is not None and len(contestants) != 2:
            raise ValueError(f"--stop_early compares two policies, not {len(contestants)}")
        self._contestants = contestants
        self._options = options
        self._out = out
        self._progress = progress
        self._open_pool = open_pool

    def run(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Evaluates and returns the receipt.

        Raises:
            GoldenFrameError: the simulator or renderer is not the one whose frame is stored.
            JournalError: `out` has the journal of another evaluation.
            SimulatorSetupError: this machine cannot run the simulator.
            WorkerError: a simulator raised.
        """
        began = time.monotonic()
        runs: list[TaskRun] = []
        described: Description | None = None
        with contextlib.ExitStack() as stack:
            journal: Journal | None = None
            for task in tasks:
                with self._open_pool(task.spec, self._options.num_workers) as pool:
                    described, verdict = check_simulator(
                        pool, task.spec, self._options.golden_frames, self._options.accept_renderer
                    )
                    if journal is None:
                        identity = self._identity(tasks, described)
                        journal = stack.enter_context(self._open_journal(identity))
                    contest = _Contest(
                        task, self._contestants, journal=journal, pool=pool, out=self._out
                    )
                    texts = text_sources(pool, task.plan)
                    runs.append(self._run_task(contest, verdict, texts))
        if described is None:
            raise ValueError("no task to evaluate")
        return receipt(
            runs,
            policies={c.name: c.identity for c in self._contestants},
            config={
                **self._options.config,
                "num_workers": self._options.num_workers,
                "shard": [self._options.shard.index, self._options.shard.count],
                "accept_renderer": self._options.accept_renderer,
                "seconds": round(time.monotonic() - began, 1),
            },
            versions={"simulator": described.versions, "policy": self._options.versions},
            renderer=described.renderer,
            git=self._options.git,
        )

    def _open_journal(self, identity: Mapping[str, Any]) -> Journal:
        path = self._out / JOURNAL
        if self._options.restart:
            path.unlink(missing_ok=True)
        journal = Journal(path, identity)
        if journal.is_new:
            for folder in (TRACES, FILMS):
                shutil.rmtree(str(self._out / folder), ignore_errors=True)
        return journal

    def _run_task(
        self, contest: _Contest, verdict: Verdict, texts: Mapping[str, Mapping[str, Any]]
    ) -> TaskRun:
        options, stopping = self._options, None
        if options.alpha is None:
            contest.run_all(options.shard, self._progress)
        else:
            stopping = contest.run_until_decided(options.alpha, self._progress)
        contest.refuse_unstarted()
        films = contest.films(options.film) if options.film else []
        run = contest.record(verdict.to_dict(), stopping, films)
        for records in run.episodes.values():
            problem = wrong_text(texts, records)
            if problem:
                raise SimulatorSetupError(f"{run.spec.name}: {problem}")
        return dataclasses.replace(run, texts=texts)

    def _identity(self, tasks: Sequence[Task], described: Description) -> dict[str, Any]:
        """Returns all that decides an outcome, for the journal: a change of it is refused."""
        return {
            "schema": SCHEMA,
            "policies": {c.name: c.identity for c in self._contestants},
            "versions": {"simulator": described.versions, "policy": self._options.versions},
            "renderer": described.renderer,
            "shard": [self._options.shard.index, self._options.shard.count],
            "alpha": self._options.alpha,
            "tasks": {
                task.spec.name: {
                    "row": row_values(task.spec),
                    "episodes": len(task.plan),
                    "plan": digest([plan_key(episode) for episode in task.plan]),
                }
                for task in tasks
            },
        }


class _Contest:
    """Episodes of one row; finished ones come from the journal and are not run again.

    Args:
        task: the row.
        contestants: the policies.
        journal: of the evaluation.
        pool: simulators of the row.
        out: folder of traces and films.

    Raises:
        JournalError: the journal has an episode that is not planned.
    """

    def __init__(
        self,
        task: Task,
        contestants: Sequence[Contestant],
        *,
        journal: Journal,
        pool: WorkerPool,
        out: Path,
    ) -> None:
        self._task = task
        self._contestants = contestants
        self._journal = journal
        self._pool = pool
        self._out = out
        planned = {plan_key(episode) for episode in task.plan}
        for record in (r for c in contestants for r in self._records(c.name)):
            if episode_key(record) not in planned:
                raise JournalError(
                    f"the journal has episode {episode_key(record)} (task:initial state:seed) of "
                    f"{task.spec.name}, which is not planned; --restart starts a new one"
                )

    def run_all(self, shard: Shard, progress: Progress) -> None:
        """Runs the shard's episodes, one policy after the other."""
        share = shard.share(self._task.plan)
        for contestant in self._contestants:
            with progress(f"{contestant.name}, {self._task.spec.name}", len(share)) as show:
                self._run(contestant, share, len(share), [contestant], show)

    def run_until_decided(self, alpha: float, progress: Progress) -> dict[str, Any]:
        """Runs pairs until the two policies differ significantly, or no more can.

        The order of the pairs is shuffled, so that an early stop does not leave out the last tasks.

        Returns:
            Rule, p value and numbers of pairs, for the receipt.
        """
        plan = self._task.plan
        order = [plan[k] for k in np.random.default_rng(len(plan)).permutation(len(plan))]
        rule = PairedStopping(alpha)
        block = _PAIRS_PER_WORKER * len(self._pool)
        names = [contestant.name for contestant in self._contestants]
        with progress(f"{' against '.join(names)}, {self._task.spec.name}", 2 * len(order)) as show:
            for start in range(0, len(order), block):
                part = order[start : start + block]
                for contestant in self._contestants:
                    self._run(contestant, part, 2 * len(order), self._contestants, show)
                first, second = (self._outcomes(name) for name in names)
                for episode in part:
                    rule.add(first[plan_key(episode)], second[plan_key(episode)])
                if rule.decided or rule.hopeless(len(order) - start - len(part)):
                    break
        pairs = rule.both + rule.only_first + rule.only_second + rule.neither
        return {
            "rule": "mixture SPRT on differing pairs, Beta(1, 1)",
            "alpha": alpha,
            "decided": rule.decided,
            "p_value": rule.p_value,
            "pairs": pairs,
            "planned": len(order),
        }

    def refuse_unstarted(self) -> None:
        """Refuses a score where no episode of a task got as far as an action.

        Raises:
            SimulatorSetupError: the simulator failed at the start of each, two times.
        """
        by_task: dict[int, list[Mapping[str, Any]]] = {}
        for contestant in self._contestants:
            for record in self._records(contestant.name):
                by_task.setdefault(record["task_id"], []).append(record)
        for task_id, records in by_task.items():
            if not any(record["error"] is None or record["queries"] for record in records):
                raise SimulatorSetupError(
                    f"no episode of task {task_id} of {self._task.spec.name} could be started "
                    f"({len(records)} were tried, each twice), so there is no score; when the "
                    f"simulator is set up, --restart begins again. {records[-1]['error']}"
                )

    def record(
        self,
        golden_frame: Mapping[str, Any],
        stopping: Mapping[str, Any] | None,
        films: Sequence[Mapping[str, Any]],
    ) -> TaskRun:
        """Returns the row's part of the receipt, episodes in the order of the plan."""
        name = self._task.spec.name
        place = {plan_key(episode): k for k, episode in enumerate(self._task.plan)}
        return TaskRun(
            spec=self._task.spec,
            plan=self._task.plan,
            golden_frame=golden_frame,
            episodes={
                c.name: sorted(self._records(c.name), key=lambda r: place[episode_key(r)])
                for c in self._contestants
            },
            calls={
                c.name: self._journal.calls.get((c.name, name), CallLog())
                for c in self._contestants
            },
            stopping=stopping,
            films=films,
        )

    def films(self, name: str) -> list[dict[str, Any]]:
        """Films a success and a failure of a policy, each where there is one.

        The episode is repeated from its trace; a repetition with another outcome gives no film.
        """
        made = []
        for outcome in OUTCOMES.values():
            trace_file = self._trace_file(name, outcome)
            if not trace_file.is_file():
                continue
            trace = load_trace(trace_file)
            path = self._out / FILMS / f"{trace_file.stem}.mp4"
            if not path.is_file():
                replayed = film(trace, pool=self._pool, every=_FILM_EVERY)
                if replayed is None:
                    continue
                save_trace(trace_file, dataclasses.replace(trace, path=replayed.path))
                path.parent.mkdir(exist_ok=True)
                fps = max(1, int(self._task.spec.control_hz // _FILM_EVERY))
                scale = 1 if replayed.frames.shape[1] >= _SMALL else 2
                write_bytes(path, encode_mp4(replayed.frames, fps=fps, scale=scale))
            made.append(
                {
                    "policy": name,
                    "episode": plan_key(trace.episode),
                    "success": trace.success,
                    "film": str(path.relative_to(self._out)),
                    "trace": str(trace_file.relative_to(self._out)),
                    "film_sha256": file_digest(path),
                    "trace_sha256": file_digest(trace_file),
                }
            )
        return made

    def _run(
        self,
        contestant: Contestant,
        episodes: Sequence[Episode],
        total: int,
        shown: Sequence[Contestant],
        show: Show,
    ) -> None:
        """Runs the episodes that are not finished yet; the bar counts all of `shown`."""
        name, task = contestant.name, self._task.spec.name

        def show_counts() -> None:
            records = [record for c in shown for record in self._records(c.name)]
            show(len(records), total, sum(record["success"] for record in records))

        def on_result(result: EpisodeResult) -> None:
            self._journal.add_episode(name, task, episode_record(result, self._task.spec.suite))
            self._keep_trace(name, result)
            show_counts()

        show_counts()
        done = self._outcomes(name)
        todo = [episode for episode in episodes if plan_key(episode) not in done]
        if contestant.policy is None:
            expert_rollout(self._task.spec, todo, pool=self._pool, on_result=on_result)
            return
        on_call = functools.partial(self._journal.add_call, name, task)
        metered = MeteredPolicy(contestant.policy, on_call)
        rollout(metered, self._task.spec, todo, pool=self._pool, on_result=on_result)

    def _records(self, name: str) -> list[dict[str, Any]]:
        return self._journal.episodes.get((name, self._task.spec.name), [])

    def _outcomes(self, name: str) -> dict[str, bool]:
        return {episode_key(record): record["success"] for record in self._records(name)}

    def _keep_trace(self, name: str, result: EpisodeResult) -> None:
        """Keeps the first success and the first failure."""
        path = self._trace_file(name, OUTCOMES[result.success])
        if result.error is None and len(result.rows) and not path.is_file():
            path.parent.mkdir(exist_ok=True)
            save_trace(path, result.trace())

    def _trace_file(self, name: str, outcome: str) -> Path:
        task = self._task.spec.name.replace(":", "-")
        return self._out / TRACES / f"{name}.{task}.{outcome}.npz"
