"""Kills a training run at random moments and restarts it: ``python -m benchmarks.kills``.

The tiny model is trained three times through the real data pipeline: straight, with ``--kills``
SIGTERMs, and with as many SIGKILLs. Each restart is the same command. A third of the kills come
while a checkpoint is written, some SIGKILLs before the first step. The table has, for each signal,
the completed steps that had to be done again, the restores that failed, and where the finished run
differs from the straight one. Hardware: CPU. Time: about a minute a kill on two cores, both signals
side by side.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.kills.killed_runs import SAVE_EVERY, Outcome, measure
from scripts.terminal import quiet_libraries

_KILLS = flags.DEFINE_integer("kills", 50, "Kills of each signal.")
_FOLDER = flags.DEFINE_string("workdir", "outputs/kills", "Folder of the runs; emptied first.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(title=f"Kills of a run with config.save_every {SAVE_EVERY}", box=box.SIMPLE)
    for column in ("signal", "kills", "while saving", "steps lost, max", "mean"):
        table.add_column(column)
    for column in ("failed restores", "differs from straight", "minutes"):
        table.add_column(column)
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            str(len(outcome.lost)),
            str(outcome.moments.count("while saving")),
            str(max(outcome.lost, default=0)),
            f"{sum(outcome.lost) / max(len(outcome.lost), 1):.2f}",
            str(len(outcome.failures)),
            ", ".join(outcome.differences) or "in nothing",
            f"{outcome.seconds / 60:.1f}",
        )
    return table


def main(argv: list[str]) -> None:
    """Prints the table, and writes it as JSON beside the runs."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    quiet_libraries()
    console, folder = Console(), pathlib.Path(_FOLDER.value).resolve()
    outcomes = measure(folder, _KILLS.value, _SEED.value, console.print)
    console.print(_table(outcomes))
    for outcome in outcomes:
        for failure in outcome.failures:
            console.print(f"{outcome.name}: {failure}", markup=False)
    record = [dataclasses.asdict(outcome) for outcome in outcomes]
    (folder / "kills.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
