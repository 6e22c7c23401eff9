"""Shows and checks the disturbances of a row of LIBERO.

``python -m benchmarks.evaluation.disturbance_sheet --out=FILE.png``, for another row or state with
`--task` and `--state`.

Writes a contact sheet of the first images, a row for each axis that can be seen and a column for
each level, and prints for each level whether the initial state is that of the control arm and how
many pixels differ. Level 0 must equal the control arm in state, images and the way of the hand.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from typing import Any, Final

import numpy as np
from absl import app, flags
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.evaluation.shown_rows import SheetHost, Shown
from eval.disturbances.axes import AXES
from eval.files import write_bytes
from eval.pictures import png
from eval.simulators.workers import WorkerCrashError, WorkerPool, python_of, run_jobs
from eval.tasks.table import Episode, TaskSpec, task_spec

_TASK = flags.DEFINE_string("task", "quickstart", "Row of LIBERO.")
_STATE = flags.DEFINE_integer("state", 31, "Initial state.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "PNG file of the contact sheet.", required=True)

_UNSEEN: Final = ("text", "delay")  # axes that no first image shows
_GAP: Final = 4  # pixels between images


def main(_: list[str]) -> int:
    """Returns the exit status: 0, or 1 where a level 0 differs from the control arm."""
    control = task_spec(_TASK.value)
    episode = Episode(control.task_ids[0], _STATE.value, control.seed_offset + _STATE.value)
    rows = {
        axis: [task_spec(f"{control.name}:{axis}{k}") for k in range(len(one.amounts) + 1)]
        for axis, one in AXES.items()
    }
    table = Table(title=f"{control.name}, state {_STATE.value}")
    for column in ("row", "amount", "state", "pixels that differ", "way of the hand", "text"):
        table.add_column(column)
    sheet, wrong = [], 0
    python = python_of(control.benchmark, None)
    with WorkerPool(functools.partial(SheetHost, control), 1, python=python) as pool:

        def shown(spec: TaskSpec) -> Shown:
            ((_, made),) = run_jobs(pool, [("show", (spec, episode))])
            if isinstance(made, WorkerCrashError):
                raise made
            return made

        plain = shown(control)
        for axis, levels in rows.items():
            images = []
            for spec in levels:
                one = shown(spec)
                images.append(one.image)
                table.add_row(*_cells(spec, one, plain))
                wrong += spec.name.endswith("0") and not _equal(one, plain)
            if axis not in _UNSEEN:
                sheet.append(images)
    write_bytes(pathlib.Path(_OUT.value), png(_joined(sheet)))
    console = Console()
    console.print(table)
    console.print(f"{wrong} of {len(rows)} levels 0 differ from the control arm; {_OUT.value}")
    return min(wrong, 1)


def _cells(spec: TaskSpec, one: Shown, plain: Shown) -> tuple[str, ...]:
    change = spec.disturbance
    amount = "" if change is None else f"{change.amount:g} {change.unit}"
    away = np.linalg.norm(one.path - plain.path, axis=1).max()
    return (
        spec.name,
        amount,
        "the same" if one.state_hash == plain.state_hash else "another",
        f"{(one.image != plain.image).any(axis=-1).mean():.1%}",
        "the same" if np.array_equal(one.path, plain.path) else f"up to {1000 * away:.0f} mm away",
        one.instruction,
    )


def _equal(one: Shown, other: Shown) -> bool:
    pairs: Any = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


def _joined(rows: list[list[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Joins images of one size to a sheet with white gaps."""
    pad = ((0, _GAP), (0, _GAP), (0, 0))
    lines = [
        np.concatenate([np.pad(image, pad, constant_values=255) for image in row], axis=1)
        for row in rows
    ]
    return np.concatenate(lines)


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
