"""A whole evaluation: rows of the task table, policies, journal, golden frames, films, receipt."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from eval.contest import FILMS, TRACES, Contest, Contestant, Progress, Task
from eval.simulators.host import Description
from eval.simulators.workers import WorkerPool
from eval.tasks.spec import TaskSpec

from .golden_frame import FOLDER, Verdict, check_simulator
from .journal import JOURNAL, Journal
from .receipt import SCHEMA, TaskRun, plan_key, receipt
from .rollout import simulator_pool
from .shards import Shard

OpenPool = Callable[[TaskSpec, int], WorkerPool]


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        num_workers: simulators at once.
        shard: which part of the episodes is this machine's.
        restart: forget what the journal holds.
        accept_renderer: go on with a simulator that does not look as it did.
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
    """Runs every contestant on every task; what is finished survives an interruption.

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
                    contest = Contest(
                        task, self._contestants, journal=journal, pool=pool, out=self._out
                    )
                    runs.append(self._run_task(contest, verdict))
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

    def _run_task(self, contest: Contest, verdict: Verdict) -> TaskRun:
        options, stopping = self._options, None
        if options.alpha is None:
            contest.run_all(options.shard, self._progress)
        else:
            stopping = contest.run_until_decided(options.alpha, self._progress)
        films = contest.films(options.film) if options.film else []
        return contest.record(verdict.to_dict(), stopping, films)

    def _identity(self, tasks: Sequence[Task], described: Description) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "policies": {c.name: c.identity for c in self._contestants},
            "versions": {"simulator": described.versions, "policy": self._options.versions},
            "renderer": described.renderer,
            "shard": [self._options.shard.index, self._options.shard.count],
            "alpha": self._options.alpha,
            "tasks": {
                task.spec.name: {
                    "row": dataclasses.asdict(task.spec),
                    "episodes": len(task.plan),
                    "plan": _digest([plan_key(episode) for episode in task.plan]),
                }
                for task in tasks
            },
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
