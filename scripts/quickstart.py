"""The whole path, small but real: record, write RLDS, train, export, evaluate, report.

python -m scripts.quickstart [--workdir=outputs/quickstart]

Every stage is a command of its own, and is shown before it runs. A stage that was completed with
the same command is skipped, an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import pathlib
import sys

from absl import app, flags
from rich.console import Console
from rich.table import Table

from eval.runs.receipt import RESULTS, read_receipt
from scripts.demo.stages import REPORT, is_complete, read_ledger, run_stage, stages
from scripts.evaluation.success_table import print_tables
from scripts.terminal import ends_clearly

_WORKDIR = flags.DEFINE_string("workdir", "outputs/quickstart", "Folder of everything.")
_DEMONSTRATIONS = flags.DEFINE_integer("demonstrations", 64, "To record.", lower_bound=1)
_ITERS = flags.DEFINE_integer("iters", 500, "Training steps.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of recording, training and evaluation.", lower_bound=0)


def main(argv: list[str]) -> int:
    """Returns the exit status of the first stage that fails, else 0."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
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
    stale = False  # what follows a stage that ran anew has to run anew
    for stage in table:
        if not stale and is_complete(stage, workdir):
            console.print(f"[bold]{stage.name}[/]: done before")
            continue
        stale = True
        status = run_stage(stage, workdir, console)
        if status:
            console.print(
                f"stage {stage.name!r} ended with status {status}; "
                "the same command goes on from here",
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
    sys.exit(app.run(ends_clearly(main)))
