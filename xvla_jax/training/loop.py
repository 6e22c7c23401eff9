"""The training loop: batches in, checkpoints and metrics out, stoppable at any step."""

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
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError, TrainingError
from xvla_jax.sharding import global_batch
from xvla_jax.training.checkpointer import Checkpointer, RunItems
from xvla_jax.training.signals import StopSignal
from xvla_jax.training.state import TrainState
from xvla_jax.training.telemetry import MetricsWriter, Watch
from xvla_jax.training.validation import Validation

SKIPPED_NAME: Final = "skipped.jsonl"
_LAG: Final = 4  # steps: a flag is read this late, so that reading does not hold up the device

_log = logging.getLogger(__name__)


class SkipWatch:
    """Reads the flag ``finite`` of each step a little later; a skipped step goes into a file."""

    def __init__(self, workdir: pathlib.Path, *, limit: int, process: int = 0) -> None:
        """So many steps of a run may be skipped; one more is an error.

        Each process has a file of its own, for the samples of its part of the batch.
        """
        if limit < 0:
            raise ConfigError(f"config.max_skipped_steps is {limit}; it must be 0 or more")
        name = pathlib.Path(SKIPPED_NAME)
        self.path = workdir / (f"{name.stem}_{process}{name.suffix}" if process else name)
        self.count = 0
        self._limit = limit
        self._waiting: deque[tuple[int, Mapping[str, Any], Sequence[str]]] = deque()

    def add(self, step: int, metrics: Mapping[str, Any], samples: Sequence[str]) -> None:
        """Takes a step with what it was made of, and looks at one of a few steps before."""
        self._waiting.append((step, metrics, samples))
        while len(self._waiting) > _LAG:
            self._look(*self._waiting.popleft())

    def flush(self) -> None:
        """Looks at all that wait.

        Raises:
            TrainingError: more steps than allowed were skipped.
        """
        while self._waiting:
            self._look(*self._waiting.popleft())

    def _look(self, step: int, metrics: Mapping[str, Any], samples: Sequence[str]) -> None:
        if bool(metrics["finite"]):
            return
        self.count += 1
        told = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
        # JSON has no NaN
        record = {k: v if math.isfinite(v) else str(v) for k, v in told.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record, "samples": list(samples)}) + "\n")
        _log.warning(
            "step %d is skipped: loss %g, gradient norm %g", step, told["loss"], told["grad_norm"]
        )
        if self.count > self._limit:
            raise TrainingError(
                f"{self.count} steps of this run were skipped because loss or gradient was not "
                f"finite, {self._limit} are allowed (config.max_skipped_steps); the last is step "
                f"{step}, with loss {told['loss']} and gradient norm {told['grad_norm']}. Their "
                f"samples are in {self.path}; look at them, or lower "
                "config.optimizer.learning_rate"
            )


class BatchSource(Protocol):
    """An endless iterator of host batches that knows where it stands."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """This process's part of the next global batch."""
        ...

    @property
    def position(self) -> Mapping[str, Any]:
        """Place in the stream after the last batch, as plain JSON values."""
        ...

    @property
    def samples(self) -> Sequence[str]:
        """What each row of the last batch is: dataset, episode, frame."""
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
    position: Mapping[str, Any]  # of the source, behind this batch
    samples: Sequence[str]  # what each row of this process is: dataset, episode, frame

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

    def __init__(
        self, source: BatchSource, mesh: Mesh, config: XVLAConfig, *, present_views: int
    ) -> None:
        """Begins to place the first batch; view slots from ``present_views`` on are left out."""
        self.waited_s = 0.0
        self._source = source
        self._mesh = mesh
        self._config = config
        self._present_views = present_views
        self._checked = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: Future[Fed] = self._pool.submit(self._place)

    def __next__(self) -> Fed:
        """The next batch.

        Raises:
            InputError: the first batch does not fit the model.
        """
        began = time.monotonic()
        fed = self._ahead.result()
        self._ahead = self._pool.submit(self._place)
        self.waited_s = time.monotonic() - began
        return fed

    def _place(self) -> Fed:
        batch = next(self._source)
        position = self._source.position
        if not self._checked:
            check_batch(batch, self._config)
            self._checked = True
        shown = {k: batch[k][:, : self._present_views] for k in IMAGE_FIELDS if k in batch}
        present = global_batch(dict(batch) | shown, self._mesh)
        return Fed(present, position, self._source.samples)

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


TrainStep = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]
Position = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, how often, and how many views the data fills.

    Attributes:
        iters: steps of the whole run.
        log_every: steps between two lines of metrics.
        present_views: view slots that any sample fills; the tower skips the rest.
    """

    iters: int
    log_every: int
    present_views: int


def run_loop(
    state: TrainState,
    train_step: TrainStep,
    batches: BatchSource,
    *,
    config: LoopConfig,
    model_config: XVLAConfig,
    mesh: Mesh,
    checkpointer: Checkpointer,
    items: RunItems,
    whole: Callable[[Position], Position],
    writer: MetricsWriter,
    stop: StopSignal,
    skips: SkipWatch,
    watch: Watch,
    validation: Validation | None = None,
) -> TrainState:
    """Trains from ``state.step`` to ``config.iters``, or until ``stop`` is reached.

    A checkpoint is written when due, at the end, and on a stop; held-out episodes are measured on
    when due. Every process of a run calls the same; ``whole`` makes the position of the run out of
    that of this process.

    Raises:
        TrainingError: too many steps were not finite.
    """
    step = int(state.step)
    if step >= config.iters:
        return state
    position = batches.position
    with DeviceFeed(batches, mesh, model_config, present_views=config.present_views) as feed:
        stopping = stop.reached(step)
        while not stopping:
            fed = next(feed)
            with jax.set_mesh(mesh):
                state, metrics = train_step(state, fed.batch)
            step, position = step + 1, fed.position
            skips.add(step, metrics, fed.samples)
            watch.step(waited_s=feed.waited_s, samples=fed.rows * jax.process_count())
            measured: dict[str, float] = {}
            if validation and validation.due(step, config.iters):
                jax.block_until_ready(state)
                with watch.waiting("validation"):
                    measured = validation.measure(state, mesh)
                _log.info("step %d/%d  %s", step, config.iters, _told(measured))
            if step % config.log_every == 0 or step == config.iters or measured:
                scalars = _scalars(metrics) | watch.read() | measured | _counts(batches)
                scalars["skipped_steps"] = float(skips.count)
                writer.write(step, scalars)
                _log.info("%s", watch.line(step, scalars))
            stopping = step >= config.iters or stop.reached(step)
            with watch.waiting("checkpoint"):
                place = functools.partial(whole, position)
                checkpointer.save(step, state, position=place, items=items, force=stopping)
    skips.flush()
    return state


def _told(measured: Mapping[str, float]) -> str:
    return "  ".join(f"{k} {v:.4g}" for k, v in measured.items() if k.startswith("val_l1"))


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a step as plain numbers; the loss of each domain that has samples."""
    found = {name: float(value) for name, value in metrics.items() if value.ndim == 0}
    if "domain_loss" in metrics:
        loss, samples = (np.asarray(metrics[f"domain_{name}"]) for name in ("loss", "samples"))
        found |= {f"loss/domain_{i}": float(loss[i]) for i in np.flatnonzero(samples)}
    return found


def _counts(batches: BatchSource) -> dict[str, float]:
    """Episodes that cannot be used, and what rows leave out."""
    found = {"bad_episodes": batches.bad_episodes, "left_out": batches.left_out}
    return {
        f"{name}/{dataset}/{kind}": float(count)
        for name, counts in found.items()
        for dataset, kinds in counts.items()
        for kind, count in kinds.items()
    }
