"""The number of training steps that fit into the minutes that the quickstart was given.

The success of the small policy rises with its steps, and machines differ by a factor of four in
how many they make. So a short run of the same program is timed first.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping

from scripts.demo.stages import RECORD, SPEED, WRITE
from scripts.terminal import UsageError

FLOOR, CEILING = 500, 1500  # steps
_ROUND = 50
# The later stages run the same simulators as the recording, for as long as so many demonstrations;
# training and certificate start the same program as the timed run, and take a part of its time.
_EVALUATED = 150
_START, _CERTIFY = 0.7, 0.5


def affordable_iters(fitting: int) -> int:
    """Training steps to take: those that fit, but from `FLOOR` to `CEILING`."""
    return max(FLOOR, min(CEILING, fitting))


def fitting_iters(
    workdir: pathlib.Path, seconds: Mapping[str, float], *, minutes: float, demonstrations: int
) -> int:
    """Training steps that fit, a multiple of 50; 0 where the minutes are too short for any.

    Args:
        workdir: folder of the quickstart, which holds the timed run.
        seconds: time of each completed stage, by name.
        minutes: for all stages together.
        demonstrations: that were recorded.

    Raises:
        UsageError: the timed run has no time of a step, as after a stop just before its end.
    """
    from xvla_jax.training.telemetry import read_metrics

    folder = (workdir / SPEED.product).parent
    times = [line["step_s"] for line in read_metrics(folder) if line.get("step_s")]
    if not times:
        raise UsageError(f"{folder} has no time of a training step; remove it, and start again")
    # the first line of metrics holds the compilation
    step_s = statistics.median(times[1:] or times)
    spent = sum(seconds[stage.name] for stage in (RECORD, WRITE, SPEED))
    later = _EVALUATED * seconds[RECORD.name] / demonstrations
    later += (_START + _CERTIFY) * seconds[SPEED.name]
    return max(0, int((60 * minutes - spent - later) / step_s) // _ROUND * _ROUND)
