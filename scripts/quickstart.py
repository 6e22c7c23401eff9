"""Runs the complete path on a small model: record, write RLDS, train, export, evaluate, report.

python -m scripts.quickstart [--robot=libero] [--workdir=outputs/quickstart] [--demonstrations=64] \
    [--minutes=15]

Every stage is a command, which is shown before it runs. A stage that was completed with the same
command is skipped, an interrupted one continues where it stopped. The training is as long as fits
into the minutes, but has at least 500 steps and at most 1,500.
"""

from __future__ import annotations

import pathlib
import sys

from rich.console import Console
from rich.table import Table

from eval.files import FileError
from eval.runs.receipt import RESULTS, read_receipt
from scripts.demo.budget import affordable_iters, fitting_iters
from scripts.demo.stages import (
    REPORT,
    ROBOTS,
    SPEED,
    STAGES,
    TRAIN,
    filled,
    is_complete,
    read_ledger,
    run_stage,
)
from scripts.evaluation.success_table import print_tables
from scripts.terminal import Command

COMMAND = Command(__doc__)
_ROBOT = COMMAND.DEFINE_enum(
    "robot", "libero", list(ROBOTS), "LIBERO's arm by poses, or an SO-101 by its joints."
)
_WORKDIR = COMMAND.DEFINE_string("workdir", "outputs/quickstart", "Folder of all outputs.")
_DEMONSTRATIONS = COMMAND.DEFINE_integer("demonstrations", 64, "Episodes to record.", lower_bound=1)
_MINUTES = COMMAND.DEFINE_float("minutes", 15.0, "Time of all stages together.", lower_bound=0.0)
_ITERS = COMMAND.DEFINE_integer(
    "iters", None, "Training steps, however long they take.", lower_bound=1
)
_WORKERS = COMMAND.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of all stages.", lower_bound=0)


def main(_: list[str]) -> int:
    """Returns the exit status of the first stage that fails, else 0."""
    try:
        return _run(Console())
    except FileError as error:  # of a ledger or a receipt that others changed
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(console: Console) -> int:
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    settings: dict[str, str | int | None] = {
        **ROBOTS[_ROBOT.value],
        "workdir": str(workdir),
        "demonstrations": _DEMONSTRATIONS.value,
        "iters": _ITERS.value,
        "workers": _WORKERS.value,
        "seed": _SEED.value,
    }
    table = [stage for stage in STAGES if _ITERS.value is None or stage is not SPEED]
    stale = False  # after a stage that ran, all later ones run again
    for stage in table:
        if stage is TRAIN and _ITERS.value is None:
            settings["iters"] = _affordable(workdir, console)
        command = filled(stage, settings)
        if not stale and is_complete(command, workdir):
            console.print(f"[bold]{stage.name}[/]: done before")
            continue
        stale = True
        status = run_stage(command, workdir, console)
        if status:
            console.print(
                f"stage {stage.name!r} ended with status {status}; "
                "the same command continues from here",
                style="bold red",
                markup=False,
            )
            return status
    print_tables(console, read_receipt(workdir / "evaluation" / RESULTS))
    times = Table("stage", "seconds")
    ledger = read_ledger(workdir)
    for stage in table:
        times.add_row(stage.name, f"{ledger[stage.name]['seconds']:.0f}")
    times.add_row("all", f"{sum(ledger[s.name]['seconds'] for s in table):.0f}")
    console.print(times)
    console.print(f"open {(workdir / REPORT).resolve()}", style="bold", markup=False)
    return 0


def _affordable(workdir: pathlib.Path, console: Console) -> int:
    seconds = {name: entry["seconds"] for name, entry in read_ledger(workdir).items()}
    fitting = fitting_iters(
        workdir, seconds, minutes=_MINUTES.value, demonstrations=_DEMONSTRATIONS.value
    )
    iters = affordable_iters(fitting)
    bound = "the fewest that make a policy" if iters > fitting else "after which little is gained"
    other = "" if iters == fitting else f"; it has {iters}, {bound}"
    console.print(
        f"{fitting} steps of training fit into {_MINUTES.value:g} minutes (--minutes){other}"
    )
    return iters


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
