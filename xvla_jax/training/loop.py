"""The training loop: batches in, checkpoints and metrics out, stoppable at any step."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xvla_jax.config import XVLAConfig
from xvla_jax.feed import BatchSource, DeviceFeed
from xvla_jax.metrics import MetricsWriter
from xvla_jax.skips import SkipWatch
from xvla_jax.training.checkpointer import Checkpointer, RunItems
from xvla_jax.training.signals import StopSignal
from xvla_jax.training.state import TrainState
from xvla_jax.training.telemetry import Watch
from xvla_jax.training.validation import Validation

_log = logging.getLogger(__name__)

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
