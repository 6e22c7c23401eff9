"""Traces of steps, for TensorBoard's profiler and XProf.

A trace holds what the devices ran, by the scopes of the program (`SCOPES`), and on the host each
step with its wait for data. Process 0 alone writes one, of its own devices.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import re
from typing import Any, Final

import jax

from xvla_jax.errors import ConfigError

STEP: Final = "train"  # annotation of a step; XProf groups by it
DATA_WAIT: Final = "data_wait"  # annotation inside of it: the step waits for its batch
# Scope in the name of an operation -> the stage that it belongs to.
SCOPES: Final = {
    "images": "jitter and normalisation of images",
    "vision_tower": "encode vision",
    "image_projector": "encode vision",
    "text_encoder": "encode text",
    "transformer": "head",
    "loss": "loss",
    "optimizer": "optimizer",
}

_log = logging.getLogger(__name__)


def steps_of(text: str, last: int) -> range:
    """Returns the steps that config.profile asks for, none if it is empty.

    Args:
        text: ``START:STOP``, START included and STOP not.
        last: step of the run.

    Raises:
        ConfigError: another form, or steps that the run does not have.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2])) if match else range(0)
    if not steps or steps[0] < 1 or steps[-1] > last:
        raise ConfigError(
            f"config.profile is {text!r}; START:STOP is expected, the steps from START up to but "
            f"without STOP, with 1 <= START < STOP <= {last + 1}, such as "
            f"{min(10, last)}:{min(13, last + 1)} (config.optimizer.iters is {last})"
        )
    return steps


class StepProfile:
    """Traces some steps of a run, until `close`.

    Args:
        steps: by number, as in the log; the first step of a process also compiles.
        folder: of TensorBoard; the trace goes into ``plugins/profile`` in it.
        done: steps taken before.
    """

    def __init__(
        self, steps: range = range(0), folder: pathlib.Path | None = None, *, done: int = 0
    ) -> None:
        self._steps = range(max(steps.start, done + 1), steps.stop)
        self._folder = folder
        self._running = False
        if steps and not self._steps:
            _log.info(
                "config.profile is %d:%d, and step %d is done: nothing is traced",
                *(steps.start, steps.stop, done),
            )

    def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which a step waits for its data and is dispatched."""
        if number not in self._steps:
            return contextlib.nullcontext()
        if not self._running and not self._start():
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation(STEP, step_num=number)

    def end(self, number: int, results: Any) -> None:
        """Writes the trace after its last step, whose results are awaited."""
        if self._running and number == self._steps[-1]:
            jax.block_until_ready(results)
            self._stop()

    def close(self) -> None:
        """Writes the trace of a run that ended before the last step."""
        if self._running:
            self._stop()

    def _start(self) -> bool:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python would bury the scopes
        try:
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
        except RuntimeError as error:  # another trace is under way
            self._give_up(error)
            return False
        self._running = True
        return True

    def _stop(self) -> None:
        self._running = False
        try:
            jax.profiler.stop_trace()
        except RuntimeError as error:  # a full disk, a folder that cannot be written
            self._give_up(error)
            return
        _log.info(
            "the trace of steps %d to %d is in %s: tensorboard --logdir=%s",
            *(self._steps[0], self._steps[-1], self._folder, self._folder),
        )

    def _give_up(self, error: RuntimeError) -> None:
        """Logs why there is no trace: it is worth a line, not the run."""
        _log.warning(
            "the trace of steps %d to %d is not written into %s: %s",
            *(self._steps[0], self._steps[-1], self._folder, error),
        )
        self._steps = range(0)


def data_wait() -> contextlib.AbstractContextManager[Any]:
    """Returns the context of a wait for data; it costs nothing while no trace is written."""
    return jax.profiler.TraceAnnotation(DATA_WAIT)
