"""Rollouts of a run's checkpoints beside the training, and the choice of the best one.

`rollout_plan` checks config.rollouts before the first step. `Rollouts` accompanies the loop: every
k-th checkpoint is evaluated by scripts.evaluate in a process of its own, on one half of the states.
At the end the best is chosen and confirmed on the other half. The folders of the evaluations are
all there is to remember: a run that was killed continues from them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rich.console import Console

from eval.runs.receipt import plan_key
from eval.runs.selection import NoScoreError, Score, best_step, halves
from eval.tasks.table import (
    episodes,
    evaluation_states,
    parse_states,
    states_text,
    task_spec,
)
from scripts.evaluation.entrants import check_task
from scripts.terminal import episode_progress, message
from scripts.training.evaluating import LOG, Evaluating
from scripts.training.rollout_results import (
    CHOICE,
    CONFIRMATION,
    FAILED,
    NAMES,
    SHARE,
    SKIPPED,
    folder_of,
    read_results,
)
from scripts.training.run import TrainingRun
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.errors import ConfigError, ContractError
from xvla_jax.training.loop import Companion, Write
from xvla_jax.training.signals import StopSignal
from xvla_jax.training.telemetry import read_metrics

_PAUSE_S: Final = 0.2  # between two looks at a process, when the training is over
_VARIABLE: Final = re.compile(r"[A-Za-z_]\w*=[^,]*")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RolloutPlan:
    """The evaluations of a run.

    Attributes:
        task: row of eval/tasks/.
        every: steps between two evaluated checkpoints.
        last: step of the run, which is evaluated as well.
        states: half -> initial states.
        episodes: half -> episodes, as receipts have them.
        options: further flags of scripts.evaluate.
        environment: variables of its process, beside those of this one.
        limit_s: seconds after which it is ended; 0 for no limit.
    """

    task: str
    every: int
    last: int
    states: Mapping[str, range]
    episodes: Mapping[str, Sequence[str]]
    options: Sequence[str]
    environment: Mapping[str, str]
    limit_s: float

    def due(self, step: int) -> bool:
        """Returns True where the checkpoint of a step is evaluated."""
        return step % self.every == 0 or step == self.last

    def command(self, checkpoint: pathlib.Path, half: str, out: pathlib.Path) -> list[str]:
        """Returns the command that evaluates a checkpoint."""
        return [
            *(sys.executable, "-m", "scripts.evaluate", f"--tasks={self.task}"),
            f"--init_states={states_text(self.states[half])}",
            f"--policy=step_{checkpoint.name}=checkpoint:{checkpoint}",
            f"--out={out}",
            "--film=",
            *self.options,
        ]

    def check_receipt(self, receipt: Mapping[str, Any], half: str, out: pathlib.Path) -> None:
        """Refuses a receipt of other episodes: checkpoints are compared on the same ones alone.

        Raises:
            ConfigError: the receipt is of another row or of other states.
        """
        ((task, row),) = receipt["tasks"].items()
        if task != self.task or row["plan"] != self.episodes[half]:
            raise ConfigError(
                f"{out} has {len(row['plan'])} episodes of {task}, and config.rollouts now plans "
                f"{len(self.episodes[half])} others of {self.task}. Go back to the task and states "
                f"of before, or move {out.parents[1]} away"
            )


def rollout_plan(run: TrainingRun, *, processes: int) -> RolloutPlan | None:
    """Returns the evaluations that config.rollouts asks for, None where it asks for none.

    Args:
        run: its action contracts must be those of the task.
        processes: of the run.

    Raises:
        ConfigError: a value that does not exist or does not fit.
        ContractError: the task has other conventions than the data.
    """
    config = run.config.rollouts
    if not config.task:
        return None
    if processes > 1:
        raise ConfigError(
            f"config.rollouts.task is {config.task!r} in a run of {processes} processes; rollouts "
            "accompany a run of one. Leave it empty, and evaluate the checkpoints with "
            "python -m scripts.evaluate"
        )
    for name, least in (("every", 1), ("workers", 1), ("limit_s", 0)):
        if config[name] < least:
            value = config[name]
            raise ConfigError(f"config.rollouts.{name} is {value}; it must be {least} or more")
    try:
        spec = task_spec(config.task)
        if not spec.benchmark:
            raise ValueError(f"task {config.task!r} is of a real robot and has no simulator")
        states = parse_states(config.states) if config.states else evaluation_states(spec)
        chosen: dict[str, range] = dict(zip((CHOICE, CONFIRMATION), halves(states), strict=True))
        plans = {h: episodes(spec, init_states=s, seed=0) for h, s in chosen.items()}
    except ValueError as error:
        raise ConfigError(f"config.rollouts: {error}") from error
    try:
        check_task(spec, run.model_config.action_mode, run.contracts)
    except ContractError as error:
        raise ContractError(
            f"config.rollouts.task is {config.task!r}: {error}. Name the task of your data, or "
            "nothing to train without rollouts"
        ) from error
    options = [f"--workers={config.workers}"]
    options += ["--accept_renderer"] if config.accept_renderer else []
    options += ["--nocontrol"] if spec.control else []
    if config.simulator_python:
        options.append(f"--simulator_python={config.simulator_python}")
    return RolloutPlan(
        config.task,
        config.every,
        run.recipe.config.iters,
        chosen,
        {half: [plan_key(episode) for episode in plan] for half, plan in plans.items()},
        options,
        _variables(config.environment),
        config.limit_s,
    )


def _variables(text: str) -> dict[str, str]:
    """Parses NAME=VALUE,NAME=VALUE."""
    parts = [part for part in text.split(",") if part]
    wrong = [part for part in parts if not _VARIABLE.fullmatch(part)]
    if wrong:
        raise ConfigError(
            f"config.rollouts.environment is {text!r}; NAME=VALUE,NAME=VALUE is expected, such as "
            "JAX_PLATFORMS=cpu"
        )
    return dict(part.split("=", 1) for part in parts)


@dataclasses.dataclass(frozen=True)
class _Running:
    """An evaluation under way."""

    step: int
    half: str
    process: Evaluating


class Rollouts(Companion):
    """Evaluates checkpoints one after the other, in processes beside the training.

    A checkpoint that is due while another is evaluated waits; when the next one is due, it is
    skipped.
    """

    def __init__(
        self, plan: RolloutPlan, workdir: pathlib.Path, *, console: Console | None = None
    ) -> None:
        """Takes over what earlier processes of the run have left in ``workdir``.

        Raises:
            ConfigError: they evaluated on other states.
        """
        self._plan, self._workdir = plan, workdir
        self._console = console or Console()
        results = read_results(workdir)
        for half, receipts in results.receipts.items():
            for step, receipt in receipts.items():
                plan.check_receipt(receipt, half, folder_of(workdir, step, half))
        self._scores = {half: dict(scores) for half, scores in results.scores.items()}
        self._failed: set[tuple[int, str]] = set()  # by this process: the next one tries again
        self._running: _Running | None = None
        self._waiting = self._left_over()
        self._news = self._not_logged()
        self._steps = self._beside = 0  # since the last line of metrics

    def _left_over(self) -> list[int]:
        """Returns begun evaluations first, then the newest checkpoint that is due."""
        saved = sorted(int(p.name) for p in self._checkpoints.glob("*") if p.name.isdigit())
        todo = [step for step in saved if step not in self._scores[CHOICE]]
        begun = [step for step in todo if folder_of(self._workdir, step, CHOICE).is_dir()]
        newest = [step for step in saved if self._plan.due(step)][-1:]
        return begun + [step for step in newest if step in todo and step not in begun]

    def _not_logged(self) -> dict[int, dict[str, float]]:
        """Returns results that a killed process had no time to log."""
        lines = read_metrics(self._workdir)
        logged = {(line["step"], name) for line in lines for name in line}
        news: dict[int, dict[str, float]] = {}
        for half, scores in self._scores.items():
            for step, score in scores.items():
                if (step, NAMES[half]) not in logged:
                    news.setdefault(step, {}).update(_scalars(half, score))
        return news

    @property
    def _checkpoints(self) -> pathlib.Path:
        return self._workdir / CHECKPOINTS

    def kept(self, steps: Sequence[int]) -> Collection[int]:
        """Returns the steps whose checkpoints are needed: waiting, evaluated now, the best."""
        needed = {*self._waiting}
        if self._running:
            needed.add(self._running.step)
        # the best of those that are still there
        there = {step: s for step, s in self._scores[CHOICE].items() if step in steps}
        return needed | ({best_step(there)} if there else set())

    def due(self, step: int) -> bool:
        """Returns True where the checkpoint of a step is evaluated."""
        return self._plan.due(step)

    def follow(self, step: int) -> Mapping[int, Mapping[str, float]]:
        """Returns new results; starts the next evaluation where none runs."""
        self._collect()
        if self._plan.due(step):
            self._add(step)
        self._start_next()
        self._steps += 1
        self._beside += self._running is not None
        return self._take_news()

    def scalars(self) -> Mapping[str, float]:
        """Returns the share of steps since the last call that were beside an evaluation."""
        share = self._beside / max(self._steps, 1)
        self._steps = self._beside = 0
        return {SHARE: share}

    def finish(self, write: Write, stop: StopSignal) -> bool:
        """Evaluates what waits, chooses the best checkpoint, and confirms it on the other half."""
        while stop.number is None:
            self._collect()
            self._start_next()
            if self._running is None:
                self._confirm()
            for step, scalars in self._take_news().items():
                write(step, scalars)
            if self._running is None:
                return True
            self._watch(self._running, stop)
        return False

    def _watch(self, running: _Running, stop: StopSignal) -> None:
        """Shows the progress of an evaluation until it ends."""
        total = len(self._plan.episodes[running.half])
        title = f"step {running.step}, {running.half}"
        with episode_progress(self._console, title, total) as show:
            while not running.process.ended and stop.number is None:
                done, successes = running.process.progress
                show(done, total, successes)
                time.sleep(_PAUSE_S)
            done, successes = running.process.progress
            show(done, total, successes)

    def _take_news(self) -> Mapping[int, Mapping[str, float]]:
        news, self._news = self._news, {}
        return news

    def _collect(self) -> None:
        """Takes the result of an evaluation that has ended."""
        running = self._running
        if running is None or not running.process.ended:
            return
        self._running = None
        try:
            score = running.process.score()
        except (NoScoreError, OSError) as error:
            self._fail(running.step, running.half, error)
            return
        # of this process: the receipt's seconds leave out loading, and what was done before a kill
        if not running.process.adopted:
            seconds = time.monotonic() - running.process.began
            score = dataclasses.replace(score, seconds=seconds)
        self._scores[running.half][running.step] = score
        self._news.setdefault(running.step, {}).update(_scalars(running.half, score))
        _log.info(
            "rollouts of step %d, %s: %s in %.0f s",
            running.step,
            running.half,
            score,
            score.seconds,
        )

    def _fail(self, step: int, half: str, error: Exception) -> None:
        self._failed.add((step, half))
        self._news.setdefault(step, {})[FAILED] = 1.0
        log = folder_of(self._workdir, step, half) / LOG
        _log.warning(
            "rollouts of step %d, %s: no score, because %s (%s)", step, half, message(error), log
        )

    def _add(self, step: int) -> None:
        """Queues a checkpoint in place of one that waits and was never begun."""
        done = step in self._scores[CHOICE] or (step, CHOICE) in self._failed
        if done or step in self._waiting or (self._running and self._running.step == step):
            return
        begun = [s for s in self._waiting if folder_of(self._workdir, s, CHOICE).is_dir()]
        for skipped in (s for s in self._waiting if s not in begun):
            self._news.setdefault(skipped, {})[SKIPPED] = 1.0
            _log.warning(
                "rollouts of step %d are skipped: %s; config.rollouts.every is %d",
                skipped,
                f"step {self._running.step} is still being evaluated"
                if self._running
                else "its checkpoint is still being written",
                self._plan.every,
            )
        self._waiting = [*begun, step]

    def _start_next(self) -> None:
        # A checkpoint appears when it is complete, some steps after its save began.
        if self._running or not self._waiting:
            return
        if (self._checkpoints / str(self._waiting[0])).is_dir():
            self._start(self._waiting.pop(0), CHOICE)

    def _confirm(self) -> None:
        scores = self._scores[CHOICE]
        step = best_step(scores) if scores else None
        if step is None or step in self._scores[CONFIRMATION]:
            return
        if (step, CONFIRMATION) not in self._failed:
            self._start(step, CONFIRMATION)

    def _start(self, step: int, half: str) -> None:
        checkpoint, out = self._checkpoints / str(step), folder_of(self._workdir, step, half)
        plan = self._plan
        try:
            process = Evaluating(
                plan.command(checkpoint, half, out),
                out,
                environment={**os.environ, **plan.environment},
                limit_s=plan.limit_s,
            )
        except OSError as error:  # no memory, disk or file lock: the training continues
            self._fail(step, half, error)
            return
        self._running = _Running(step, half, process)
        how = "still run since before this process" if process.adopted else "begin"
        _log.info(
            "rollouts of step %d, %s: %d episodes of %s %s",
            step,
            half,
            len(plan.episodes[half]),
            plan.task,
            how,
        )

    def close(self) -> None:
        """Ends the process of an evaluation under way; its finished episodes stay."""
        if self._running:
            self._running.process.stop()


def _scalars(half: str, score: Score) -> dict[str, float]:
    low, high = score.interval
    name = NAMES[half]
    return {
        name: score.rate,
        f"{name}/low": low,
        f"{name}/high": high,
        f"{name}/episodes": float(score.episodes),
        f"{name}/seconds": score.seconds,
    }
