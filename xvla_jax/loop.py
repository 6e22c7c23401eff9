"""The training loop: batches in, checkpoints and metrics out, stoppable at any step."""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xvla_jax.checkpoint import Checkpointer
from xvla_jax.config import XVLAConfig
from xvla_jax.feed import BatchSource, DeviceFeed
from xvla_jax.metrics import MetricsWriter
from xvla_jax.skips import SkipWatch
from xvla_jax.train import TrainState
from xvla_jax.validation import Validation
from xvla_jax.watch import Watch

_log = logging.getLogger(__name__)

TrainStep = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


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


class StopSignal:
    """Turns SIGINT and SIGTERM into a flag: a run stops between two steps, with a checkpoint."""

    def __init__(self) -> None:
        """Nothing is caught before the ``with`` block."""
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        """Starts to catch."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.number is not None:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.number = number


def run_loop(
    state: TrainState,
    train_step: TrainStep,
    batches: BatchSource,
    *,
    config: LoopConfig,
    model_config: XVLAConfig,
    mesh: Mesh,
    checkpointer: Checkpointer,
    model_item: Mapping[str, Any],
    writer: MetricsWriter,
    stop: StopSignal,
    skips: SkipWatch,
    watch: Watch,
    validation: Validation | None = None,
) -> TrainState:
    """Trains from ``state.step`` to ``config.iters``, or until ``stop`` is raised.

    A checkpoint is written when due, at the end, and on a stop; held-out episodes are measured on
    when due.

    Raises:
        TrainingError: too many steps were not finite.
    """
    step = int(state.step)
    if step >= config.iters:
        return state
    position = batches.position
    with DeviceFeed(batches, mesh, model_config, present_views=config.present_views) as feed:
        while not _stopping(step, config, stop):
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
                scalars = _scalars(metrics) | watch.read() | measured | _bad_episodes(batches)
                scalars["skipped_steps"] = float(skips.count)
                writer.write(step, scalars)
                _log.info("%s", watch.line(step, scalars))
            if not _stopping(step, config, stop):
                with watch.waiting("checkpoint"):
                    checkpointer.save(step, state, position=position, model=model_item)
    checkpointer.save(step, state, position=position, model=model_item, force=True)
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


def _bad_episodes(batches: BatchSource) -> dict[str, float]:
    return {
        f"bad_episodes/{dataset}/{kind}": float(count)
        for dataset, kinds in batches.bad_episodes.items()
        for kind, count in kinds.items()
    }


def _stopping(step: int, config: LoopConfig, stop: StopSignal) -> bool:
    return step >= config.iters or stop.number is not None
