"""The training loop: batches in, checkpoints and metrics out, stoppable after any step.

`run_loop` comes first; below it are the parts that it is given, and the two that it is made of:
`DeviceFeed`, which places batches ahead, and `SkipWatch`, which reports steps without an update.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from xvla_jax.batch import IMAGE_FIELDS, check_batch
from xvla_jax.compilation.profiling import StepProfile, data_wait
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError, TrainingError
from xvla_jax.sharding import global_batch
from xvla_jax.training.checkpointer import Checkpointer, LowestError, RunItems
from xvla_jax.training.signals import StopSignal
from xvla_jax.training.state import TrainState
from xvla_jax.training.step import Arrays, TrainStep
from xvla_jax.training.telemetry import MetricsWriter, StepMeans, Watch
from xvla_jax.training.validation import Validation

Position = Mapping[str, Any]
Write = Callable[[int, Mapping[str, float]], None]  # takes a step and its scalars

_log = logging.getLogger(__name__)


def run_loop(
    state: TrainState,
    train_step: TrainStep,
    batches: BatchSource,
    *,
    schedule: Schedule,
    placement: Placement,
    saving: Saving,
    reports: Reports,
    stop: StopSignal,
    validation: Validation | None = None,
) -> TrainState:
    """Trains from ``state.step`` to ``schedule.iters``, or until ``stop`` is reached.

    Writes a checkpoint when due, at the end and on a stop; measures on held-out episodes when due.
    Every process of a run calls this with the same arguments, but for its part of the batches.

    Raises:
        TrainingError: too many steps were not finite.
    """
    step = int(state.step)
    if step >= schedule.iters:
        return state
    with DeviceFeed(batches, placement) as feed:
        stopping = stop.reached(step)
        while not stopping:
            with reports.profile.step(step + 1):
                # The feed has placed this batch on the device while the step before was computed.
                fed = next(feed)
                # Dispatched, not awaited: the host continues until it reads a number of this step.
                with jax.set_mesh(placement.mesh):
                    state, metrics = train_step(state, fed.batch)
            step += 1
            reports.step(step, state, metrics, fed, waited_s=feed.waited_s)

            # Before the log, so that a measurement is in the line of its step.
            measured = {}
            if validation and validation.due(step, schedule.iters):
                measured = _validate(validation, state, placement.mesh, reports.watch)
                _log.info("step %d/%d  %s", step, schedule.iters, _listed(measured, "val_l1"))
            if step % schedule.log_every == 0 or step == schedule.iters or measured:
                scalars = _scalars(metrics, reports.domains) | {**saving.companion.scalars()}
                reports.write(step, scalars | measured | _counts(batches))

            # Before saving, for the last step is always saved. All processes ask, so all agree.
            stopping = step >= schedule.iters or stop.reached(step)
            # Last, with the position behind this batch: the source is a batch ahead by now.
            force = saving.needs(step, measured) or stopping
            with reports.watch.waiting("checkpoint"):
                run_position = functools.partial(saving.run_position, fed.position)
                saving.checkpointer.save(
                    step, state, position=run_position, items=saving.items, force=force
                )
            for earlier, scalars in saving.companion.follow(step).items():
                reports.writer.write(earlier, scalars)
    reports.skips.flush()
    return state


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length of the run, and how often it logs.

    Attributes:
        iters: steps of the run, those before a resume included.
        log_every: steps between two lines of metrics.
    """

    iters: int
    log_every: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """The way of a host batch onto the devices.

    Attributes:
        mesh: the mesh that batches are split over.
        model_config: the config that the first batch is checked against.
        present_views: view slots that any sample fills; images of the others stay on the host.
    """

    mesh: Mesh
    model_config: XVLAConfig
    present_views: int


class Companion:
    """Work on the run's checkpoints beside the training, such as rollouts; this one has none.

    The loop waits for none of the methods.
    """

    def due(self, step: int) -> bool:  # noqa: ARG002  # for subclasses
        """Returns True where a checkpoint of ``step`` is needed, whatever the interval of saves."""
        return False

    def follow(self, step: int) -> Mapping[int, Mapping[str, float]]:  # noqa: ARG002
        """Starts and ends work after ``step`` was saved, if it was due.

        Returns:
            Results that are new: scalars by the step of their checkpoint.
        """
        return {}

    def scalars(self) -> Mapping[str, float]:
        """Returns scalars for the line of metrics that is written now."""
        return {}

    def finish(self, write: Write, stop: StopSignal) -> bool:  # noqa: ARG002
        """Does after the last step what is left, unless ``stop`` comes.

        Args:
            write: takes results: a step and its scalars.
            stop: leaves the rest to the next process of the run.

        Returns:
            True where nothing is left.
        """
        return True

    def close(self) -> None:
        """Ends work under way, which the next process of the run continues."""


@dataclasses.dataclass(frozen=True)
class Saving:
    """The checkpointer, and the values that checkpoints hold beside the state.

    Attributes:
        checkpointer: the checkpointer of the workdir.
        items: values that are the same in every checkpoint of the run.
        run_position: position of this process in its data -> position of the run, over all.
        lowest: takes ``val_l1`` of each measured step, which is then saved whatever the interval;
            None to save at the interval only.
        companion: works on checkpoints beside the training.
    """

    checkpointer: Checkpointer
    items: RunItems
    run_position: Callable[[Position], Position]
    lowest: LowestError | None = None
    companion: Companion = dataclasses.field(default_factory=Companion)

    def needs(self, step: int, measured: Mapping[str, float]) -> bool:
        """Returns True to save ``step`` whatever the interval; notes what validation measured."""
        if self.lowest and measured:
            self.lowest.add(step, measured["val_l1"])
            return True
        return self.companion.due(step)


@dataclasses.dataclass(frozen=True)
class Reports:
    """The log of the run, on disk and on the console.

    Attributes:
        writer: writes the metrics.
        watch: measures the time of steps, data and saves.
        skips: counts the steps without an update, and ends the run at its limit.
        domains: names by id; the loss of a domain without one is named by its id.
        means: metrics that are reported as means over steps, not of the last one.
        profile: traces the steps that were asked for.
    """

    writer: MetricsWriter
    watch: Watch
    skips: SkipWatch
    domains: Mapping[int, str] = dataclasses.field(default_factory=dict)
    means: StepMeans = dataclasses.field(default_factory=StepMeans)
    profile: StepProfile = dataclasses.field(default_factory=StepProfile)

    def step(
        self, step: int, state: TrainState, metrics: Arrays, fed: Fed, *, waited_s: float
    ) -> None:
        """Counts a step, and ends the profile after its last; else the device is not awaited."""
        self.profile.end(step, state)
        self.skips.add(step, metrics, fed.samples)
        self.means.add(metrics)
        self.watch.step(waited_s=waited_s, samples=fed.rows * jax.process_count())

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the metrics of a step with the times and skips so far, and logs a line."""
        line = {**scalars, **self.means.read(), **self.watch.read()}
        line["skipped_steps"] = float(self.skips.count)
        self.writer.write(step, line)
        _log.info("%s", self.watch.line(step, line))


def _validate(
    validation: Validation, state: TrainState, mesh: Mesh, watch: Watch
) -> dict[str, float]:
    """Returns the errors on held-out episodes."""
    jax.block_until_ready(state)  # else the time of the train step would count as validation
    with watch.waiting("validation"):
        return validation.measure(state, mesh)


def _listed(scalars: Mapping[str, float], beginning: str) -> str:
    chosen = {name: value for name, value in scalars.items() if name.startswith(beginning)}
    return "  ".join(f"{name} {value:.4g}" for name, value in chosen.items())


def _scalars(metrics: Arrays, names: Mapping[int, str]) -> dict[str, float]:
    """Returns the metrics of a step as plain numbers; a loss for each domain with samples.

    Args:
        metrics: of the step.
        names: of domains by id.
    """
    # float() waits for the device; it is called only for steps that are logged.
    scalars = {name: float(value) for name, value in metrics.items() if value.ndim == 0}
    if "domain_loss" in metrics:
        loss, samples = (np.asarray(metrics[f"domain_{name}"]) for name in ("loss", "samples"))
        for i in np.flatnonzero(samples).tolist():
            scalars[f"loss/{names.get(i, f'domain_{i}')}"] = float(loss[i])
    return scalars


def _counts(batches: BatchSource) -> dict[str, float]:
    """Returns counts of unusable episodes, and of what rows leave out."""
    counts = {"bad_episodes": batches.bad_episodes, "left_out": batches.left_out}
    return {
        f"{name}/{dataset}/{kind}": float(count)
        for name, by_dataset in counts.items()
        for dataset, kinds in by_dataset.items()
        for kind, count in kinds.items()
    }


class BatchSource(Protocol):
    """An endless iterator of host batches that knows its position."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """Returns this process's part of the next global batch."""
        ...

    @property
    def position(self) -> Position:
        """Place in the stream after the last batch, as plain JSON values."""
        ...

    @property
    def samples(self) -> Sequence[str]:
        """Dataset, episode and frame of each row of the last batch."""
        ...

    @property
    def bad_episodes(self) -> Mapping[str, Mapping[str, int]]:
        """Dataset -> kind of fault -> episodes left out so far."""
        ...

    @property
    def left_out(self) -> Mapping[str, Mapping[str, int]]:
        """Dataset -> kind -> episodes or frames that its row leaves out; these are not bad."""
        ...


class Fed(NamedTuple):
    """A batch on the device."""

    batch: dict[str, jax.Array]
    position: Position  # of the source, behind this batch
    samples: Sequence[str]  # dataset, episode and frame of each row of this process

    @property
    def rows(self) -> int:
        """Samples in the part of this process."""
        return len(self.samples)


class DeviceFeed(Iterator[Fed]):
    """Batches of a source on the mesh, one ahead of the training loop.

    Use as a context manager. The first batch is checked against the model.

    Attributes:
        waited_s: seconds that the last ``next`` had to wait.
    """

    def __init__(self, source: BatchSource, placement: Placement) -> None:
        """Starts to place the first batch."""
        self.waited_s = 0.0
        self._source = source
        self._placement = placement
        self._checked = False
        # One thread: batches keep their order, and the source is never read twice at a time.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: Future[Fed] = self._pool.submit(self._place)

    def __next__(self) -> Fed:
        """Returns the next batch.

        Raises:
            InputError: the first batch does not fit the model.
        """
        # The next batch is asked for as soon as this one is there, before the caller's step.
        began = time.monotonic()
        with data_wait():
            fed = self._ahead.result()
        self._ahead = self._pool.submit(self._place)
        self.waited_s = time.monotonic() - began
        return fed

    def _place(self) -> Fed:
        batch = next(self._source)
        # Read here, in the thread: one batch later the source stands elsewhere.
        position, samples = self._source.position, self._source.samples
        if not self._checked:
            check_batch(batch, self._placement.model_config)
            self._checked = True
        # [B, V, ...] -> [B, present views, ...]: the vision tower skips slots that are always empty
        views = self._placement.present_views
        shown = {name: batch[name][:, :views] for name in IMAGE_FIELDS if name in batch}
        return Fed(global_batch({**batch, **shown}, self._placement.mesh), position, samples)

    def __enter__(self) -> DeviceFeed:
        """For ``with``."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the thread; a batch placed ahead is lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)


SKIPPED_NAME: Final = "skipped.jsonl"
_LAG: Final = 4  # steps after which a flag is read, so that reading does not hold up the device


class SkipWatch:
    """Reads the flag ``finite`` of each step a little later; writes skipped steps to a file."""

    def __init__(self, workdir: pathlib.Path, *, limit: int, process: int = 0) -> None:
        """Opens nothing before the first skip.

        Args:
            workdir: of the run.
            limit: steps that may be skipped; one more ends the run.
            process: each has a file of its own, for the samples of its part of the batch.
        """
        if limit < 0:
            raise ConfigError(f"config.max_skipped_steps is {limit}; it must be 0 or more")
        name = pathlib.Path(SKIPPED_NAME)
        self.path = workdir / (f"{name.stem}_{process}{name.suffix}" if process else name)
        self.count = 0
        self._limit = limit
        self._waiting: deque[tuple[int, Mapping[str, Any], Sequence[str]]] = deque()

    def add(self, step: int, metrics: Mapping[str, Any], samples: Sequence[str]) -> None:
        """Queues a step with its samples, and reads the flag of one a few steps before."""
        self._waiting.append((step, metrics, samples))
        while len(self._waiting) > _LAG:
            self._look(*self._waiting.popleft())

    def flush(self) -> None:
        """Reads all flags that wait.

        Raises:
            TrainingError: more steps than allowed were skipped.
        """
        while self._waiting:
            self._look(*self._waiting.popleft())

    def _look(self, step: int, metrics: Mapping[str, Any], samples: Sequence[str]) -> None:
        if bool(metrics["finite"]):
            return
        # The samples are what helps to find the cause, and only this process knows its own.
        self.count += 1
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        record = {  # JSON has no NaN
            name: value if math.isfinite(value) else str(value)
            for name, value in (("loss", loss), ("grad_norm", norm))
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record, "samples": list(samples)}) + "\n")
        _log.warning("step %d is skipped: loss %g, gradient norm %g", step, loss, norm)
        if self.count > self._limit:
            raise TrainingError(
                f"{self.count} steps of this run were skipped because loss or gradient was not "
                f"finite, {self._limit} are allowed (config.max_skipped_steps); the last is step "
                f"{step}, with loss {loss} and gradient norm {norm}. Their samples are in "
                f"{self.path}; look at them, or lower config.optimizer.learning_rate"
            )
