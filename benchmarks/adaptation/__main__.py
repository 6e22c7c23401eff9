"""Adapts a small base to a new robot in several ways: ``python -m benchmarks.adaptation``.

The base is trained on LIBERO demonstrations of three domains (poses), the new robot is the SO-101
(joints). Each cell trains from 10, 20 or 50 of its demonstrations, for the same number of steps
whatever the way, and is evaluated on the same 50 initial states, none of which any demonstration
begins from. Every stage is a command, which is shown before it runs; what was completed by the same
command is skipped. The report is written at the end, as Markdown, JSON and PNG.
Hardware: two CPU cores, for about an hour and a half.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import app, flags
from rich.console import Console

from benchmarks.adaptation.cells import (
    CELLS,
    CHOICE,
    DATASET,
    HELD_OUT,
    Cell,
    Size,
    base_stages,
    cell_stages,
    choosing,
    copying,
)
from benchmarks.adaptation.report import finished, l1_file, write
from eval.files import write_json
from scripts.demo.stages import Stage, is_complete, run_stage
from scripts.terminal import quiet_libraries

_OUT = flags.DEFINE_string("out", "outputs/adaptation", "Folder of the experiment.")
_CELLS = flags.DEFINE_list(
    "cells", None, f"Cells to run, in this order; all by default: {', '.join(CELLS)}."
)
_BASE_STEPS = flags.DEFINE_integer("base_steps", 1200, "Of the base.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 600, "Of each cell.", lower_bound=5)
_BATCH = flags.DEFINE_integer("batch", 16, "Samples of a cell's step.", lower_bound=1)
_PREPARE = flags.DEFINE_bool("prepare", False, "Make the base and the data alone.")
_REPORT = flags.DEFINE_bool("report", True, "Measure the cells and write the report at the end.")


def chosen_cells(names: list[str] | None) -> list[Cell]:
    """Returns the cells of the command line.

    Raises:
        app.UsageError: there is no cell of a name.
    """
    unknown = [name for name in names or () if name not in CELLS]
    if unknown:
        raise app.UsageError(f"--cells={','.join(unknown)}; the cells are {', '.join(CELLS)}")
    return [CELLS[name] for name in (CELLS if names is None else names)]


def main(_: list[str]) -> int:
    """Returns the exit status of the first stage that fails, else 0."""
    cells = [] if _PREPARE.value else chosen_cells(_CELLS.value)
    console, workdir = Console(), pathlib.Path(_OUT.value)
    workdir.mkdir(parents=True, exist_ok=True)
    size = Size(_BASE_STEPS.value, _STEPS.value, _BATCH.value)
    status = _run(base_stages(_OUT.value, size), workdir, console)
    for cell in cells:
        if not status and cell.method == "nearest":
            status = _copy_nearest(workdir, console)
        status = status or _run(cell_stages(_OUT.value, cell, size), workdir, console)
        if status:
            break
    if _REPORT.value:
        _report(workdir, size, console)
    return status


def _report(workdir: pathlib.Path, size: Size, console: Console) -> None:
    """Measures what is not measured yet, and writes the report of all finished cells."""
    missing = [cell for cell in finished(workdir) if not l1_file(workdir, cell).is_file()]
    if missing:
        from benchmarks.adaptation.held_out import HeldOut

        quiet_libraries()
        held_out = HeldOut(DATASET, workdir / HELD_OUT)
        for cell in missing:
            error = held_out.l1(workdir / cell.folder / "train")
            write_json(l1_file(workdir, cell), {"l1": error})
            console.print(f"{cell.name}: l1 {error:.4f} rad")
    console.print(write(workdir, dataclasses.asdict(size)), markup=False)


def _copy_nearest(workdir: pathlib.Path, console: Console) -> int:
    status = _run([choosing(_OUT.value)], workdir, console)
    if status:
        return status
    domain_id = json.loads((workdir / CHOICE).read_text())["nearest"]
    return _run([copying(_OUT.value, domain_id)], workdir, console)


def _run(stages: list[Stage], workdir: pathlib.Path, console: Console) -> int:
    """Runs what is not complete yet; returns the exit status of the stage that fails, else 0."""
    for stage in stages:
        status = 0 if is_complete(stage, workdir) else run_stage(stage, workdir, console)
        if status:
            console.print(f"{stage.name!r} ended with status {status}", style="bold red")
            return status
    return 0


if __name__ == "__main__":
    app.run(main)
