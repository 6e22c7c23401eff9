"""Strategies of control, from the command line and a row of the task table."""

from __future__ import annotations

import functools
from collections.abc import Callable

from eval.robot.realtime import STRATEGIES, ChunkStream, Timing
from eval.tasks.table import TaskSpec, task_contract

_ARMS = (0, 1)  # of the 20 numbers of EE6D; the mean of an arm that is not there harms nobody


def stream_maker(text: str, spec: TaskSpec) -> Callable[[], ChunkStream]:
    """Streams of NAME:HORIZON on a row of the task table.

    Raises:
        ValueError: another form, an unknown strategy, or a horizon beyond the row's chunk.
    """
    name, _, horizon = text.partition(":")
    executed = spec.client.executed
    if name not in STRATEGIES or not horizon.isdigit() or not 1 <= int(horizon) <= executed:
        raise ValueError(
            f"--strategy={text}: NAME:HORIZON is expected, with NAME one of "
            f"{', '.join(STRATEGIES)} and HORIZON 1 .. {executed}"
        )
    timing = Timing(
        horizon=int(horizon),
        stride=spec.client.stride,
        feedback_channels=spec.client.feedback_channels,
        rotation_layout=spec.client.rotation,
        arms=_ARMS,
    )
    relative = task_contract(spec)["relative_channels"]
    make = functools.partial(
        ChunkStream, STRATEGIES[name], timing, relative_channels=tuple(relative)
    )
    make()  # refuses here what no episode could use
    return make
