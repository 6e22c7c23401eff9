"""Runs the complete path on a small model: record, write RLDS, train, export, evaluate, report.

python -m scripts.quickstart [--workdir=outputs/quickstart] [--demonstrations=64] [--iters=500]

Every stage is a command, which is shown before it runs. A stage that was completed with the same
command is skipped, an interrupted one continues where it stopped.
"""

from __future__ import annotations

import pathlib
import sys

from rich.console import Console
from rich.table import Table

from eval.runs.receipt import RESULTS, read_receipt
from scripts.demo.stages import REPORT, is_complete, read_ledger, run_stage, stages
from scripts.evaluation.success_table import print_tables
from scripts.terminal import Command

COMMAND = Command(__doc__)
_WORKDIR = COMMAND.DEFINE_string("workdir", "outputs/quickstart", "Folder of all outputs.")
_DEMONSTRATIONS = COMMAND.DEFINE_integer("demonstrations", 64, "Episodes to record.", lower_bound=1)
_ITERS = COMMAND.DEFINE_integer("iters", 500, "Training steps.", lower_bound=1)
_WORKERS = COMMAND.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of all stages.", lower_bound=0)


def main(_: list[str]) -> int:
    """Returns the exit status of the first stage that fails, else 0."""
    console = Console()
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    table = stages(
        str(workdir),
        demonstrations=_DEMONSTRATIONS.value,
        iters=_ITERS.value,
        workers=_WORKERS.value,
        seed=_SEED.value,
    )
    stale = False  # after a stage that ran, all later ones run again
    for stage in table:
        if not stale and is_complete(stage, workdir):
            console.print(f"[bold]{stage.name}[/]: done before")
            continue
        stale = True
        status = run_stage(stage, workdir, console)
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


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
