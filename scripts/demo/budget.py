"""The number of training steps that fit into the minutes that the quickstart was given.

The success of the small policy rises with its steps, and machines differ by a factor of four in
how many they make. So a short run of the same program is timed first.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping

from scripts.demo.stages import RECORD, SPEED, WRITE

FLOOR = 500  # steps
_ROUND = 50
# Later stages and the start of training, in seconds of earlier stages that do similar work: they
# run the same simulators as the recording, and start the same program as the timed run, as the
# certificate does too.
_LATER, _START, _CERTIFY = 2.4, 0.7, 0.5


def affordable_iters(
    workdir: pathlib.Path, seconds: Mapping[str, float], *, minutes: float, most: int
) -> int:
    """Training steps that fit, a multiple of 50, but at least `FLOOR`.

    Args:
        workdir: folder of the quickstart, which holds the timed run.
        seconds: time of each completed stage, by name.
        minutes: for all stages together.
        most: steps, however fast the machine is.
    """
    lines = (workdir / SPEED.product).read_text().splitlines()
    # the first line of metrics holds the compilation
    step_s = statistics.median(json.loads(line)["step_s"] for line in lines[1:])
    spent = sum(seconds[stage.name] for stage in (RECORD, WRITE, SPEED))
    later = _LATER * seconds[RECORD.name] + (_START + _CERTIFY) * seconds[SPEED.name]
    steps = int((60 * minutes - spent - later) / step_s) // _ROUND * _ROUND
    return max(FLOOR, min(most, steps))
