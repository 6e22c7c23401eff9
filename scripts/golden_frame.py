"""Stores or checks the golden frame of a task: its first image, in eval/golden/.

python -m scripts.golden_frame --task=libero_spatial [--check]

Evaluations compare the first image of their simulator with it before the first episode.
"""

from __future__ import annotations

import sys

from absl import app, flags
from rich.console import Console

from eval.files import FileError
from eval.runs.golden_frame import (
    FOLDER,
    GoldenFrameError,
    check_simulator,
    first_frame,
    frame_name,
    save_frame,
)
from eval.runs.rollout import simulator_pool
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerError
from eval.tasks.table import TASKS, task_spec
from scripts.terminal import ends_clearly

_TASK = flags.DEFINE_enum("task", None, sorted(TASKS), "Row of eval/tasks/.", required=True)
_CHECK = flags.DEFINE_bool("check", False, "Compare with the stored frame; store nothing.")


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 where the frame differs or cannot be rendered."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    console, spec = Console(), task_spec(_TASK.value)
    try:
        with simulator_pool(spec, 1) as pool:
            if _CHECK.value:
                _, verdict = check_simulator(pool, spec, FOLDER, accept=False)
                console.print(f"{spec.name}: {verdict.state}", markup=False)
            else:
                _, frame = first_frame(pool, spec)
                save_frame(FOLDER, frame_name(spec), frame)
                console.print(f"stored {FOLDER / frame_name(spec)}", markup=False)
    except (FileError, GoldenFrameError, SimulatorSetupError, WorkerError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(app.run(ends_clearly(main)))
