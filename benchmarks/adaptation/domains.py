"""The base's domains, LIBERO's arm on three kinds of tasks, and the new robot's demonstrations.

``python -m benchmarks.adaptation.domains NAME FOLDER`` records one of `RECORDED` with the scripted
expert, as ``scripts.record_demos`` does, but LIBERO at the quickstart's size of images.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from data.rows.rlds import RLDS_ROWS
from data.spec import DatasetSpec
from eval.recording.demonstrations import Recording
from eval.runs.rollout import simulator_pool
from eval.tasks.table import TaskSpec, task_spec
from scripts.demo.stages import ROBOTS
from scripts.terminal import episode_progress

MODULE = "benchmarks.adaptation.domains"
STORED_AS = "libero_demos"  # the dataset of scripts.build_rlds, in a folder of each domain
_WORKERS = 2
_ROW = next(row for row in RLDS_ROWS if row.name == STORED_AS)
_ROBOT = ROBOTS["so101"]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Demonstrations of the scripted expert.

    Attributes:
        task: row of eval/tasks/.
        episodes: how many are tried.
        rate_hz: frames in a second of simulation.
        wander: size of random excursions in metres.
        changes: of fields of the row.
    """

    task: str
    episodes: int
    rate_hz: float = 10.0
    wander: float = 0.04
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TRAINED, HELD_OUT = 50, 10  # demonstrations of the new robot
# the images of the quickstart's row, of 128 px
_SMALL: Mapping[str, Any] = {"image_size": 128, "msaa_samples": 0, "fresh_env": False}
RECORDED: Mapping[str, Recorded] = {
    "basket": Recorded("quickstart", 64),
    "bowls": Recorded("libero_spatial", 36, changes=_SMALL),
    "table": Recorded("libero_goal", 20, changes=_SMALL),
    # an episode for each initial state: those behind the first 50 are never trained on
    "robot": Recorded(
        _ROBOT["task"],
        TRAINED + HELD_OUT,
        float(_ROBOT["rate_hz"]),
        float(_ROBOT["wander"]),
        {"held_out": TRAINED + HELD_OUT},
    ),
}

# the basket's row is that of make demo; the others differ in rate, and one in its views
BASKET = dataclasses.replace(_ROW, name="basket", storage_name=f"basket/{STORED_AS}")
BOWLS = dataclasses.replace(
    _ROW,
    name="bowls",
    storage_name=f"bowls/{STORED_AS}",
    domain="bowls",
    domain_id=None,
    window_s=1.0,  # 30 anchors at 30 Hz
)
TABLE = dataclasses.replace(
    _ROW,
    name="table",
    storage_name=f"table/{STORED_AS}",
    domain="table",
    domain_id=None,
    window_s=2.0,  # 15 Hz
    views=_ROW.views[:1],
)
ROWS: Mapping[str, DatasetSpec] = {"BASKET": BASKET, "BOWLS": BOWLS, "TABLE": TABLE}


def mixture() -> str:
    """Returns config.data.mixture of the base, in equal shares."""
    return ",".join(f"{MODULE}:{name}:1" for name in ROWS)


def changed_task(recorded: Recorded) -> TaskSpec:
    """Returns the row of eval/tasks/ as it is recorded."""
    return dataclasses.replace(task_spec(recorded.task), **recorded.changes)


def main(arguments: list[str]) -> int:
    """Records; returns the exit status: 0, or 2 for other arguments."""
    if len(arguments) != 2 or arguments[0] not in RECORDED:
        print(f"found {arguments}; NAME and FOLDER are needed, NAME of {', '.join(RECORDED)}")
        return 2
    recorded, console = RECORDED[arguments[0]], Console()
    spec = changed_task(recorded)
    recording = Recording(
        pathlib.Path(arguments[1]),
        spec,
        num_episodes=recorded.episodes,
        wander=recorded.wander,
        rate_hz=recorded.rate_hz,
        seed=0,
    )
    with episode_progress(console, arguments[0], recorded.episodes) as show:
        ledger = recording.run(functools.partial(simulator_pool, spec, _WORKERS), show)
    console.print(f"{ledger['recorded']} recorded, {ledger['failed']} failed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
