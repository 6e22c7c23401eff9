"""Converts LIBERO's public demonstrations (HDF5, relative actions) to RLDS with absolute actions.

python -m scripts.convert_libero --root=FOLDER --out=DATA --licence=TEXT [--episodes=N]

FOLDER has SUITE/TASK_demo.hdf5. Every recording is replayed twice in simulation, see
docs/converters.md; those that fail are left out and listed. The dataset is row libero_rlds.
Converted recordings are kept in DATA/libero_conversion, so the same command resumes after a stop.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from eval.recording.libero_absolute import (
    CONVERTED,
    REPORT,
    Conversion,
    ConversionHost,
    Demonstration,
    conversion_settings,
)
from eval.runs.binomial import success_interval
from eval.simulators.libero import task_index
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerError, WorkerPool
from eval.tasks.table import TASKS, TaskSpec
from scripts.terminal import STOPPED, Command, count_progress, episode_progress, quiet_libraries

if TYPE_CHECKING:
    from data.writing.publish import Written


FOLDER = "libero_conversion"
DATASET = "libero"  # storage of the row libero_rlds
SHOWN = 20  # failures that are printed; the report has all

COMMAND = Command(__doc__)
_ROOT = COMMAND.DEFINE_string("root", None, "Folder of the public files.", required=True)
_OUT = COMMAND.DEFINE_string("out", None, "Data folder of the dataset.", required=True)
_LICENCE = COMMAND.DEFINE_string("licence", None, "Terms of use, for the manifest.", required=True)
_WORKERS = COMMAND.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_EPISODES = COMMAND.DEFINE_integer("episodes", 0, "Recordings of each task; 0: all.", lower_bound=0)
COMMAND.DEFINE_alias("hdf5", "root")
COMMAND.DEFINE_alias("demos", "episodes")


def convert(console: Console, command: str) -> tuple[dict[str, Any], Written | None]:
    """Returns the report of the conversion, and the dataset if any recording was converted."""
    folder = pathlib.Path(_OUT.value) / FOLDER
    from data.writing.recorded import write_dataset

    conversion = open_conversion(pathlib.Path(_ROOT.value), folder, _EPISODES.value)
    host = functools.partial(ConversionHost, suites(), task_index)
    with episode_progress(console, "replaying", 0) as show:
        report = conversion.run(lambda: WorkerPool(host, _WORKERS.value), show)
    files = conversion.files()
    if not files:
        return report, None
    with count_progress(console, "writing") as count:
        done = iter(range(1, len(files) + 1))
        written = write_dataset(
            files,
            pathlib.Path(_OUT.value),
            name=DATASET,
            licence=_LICENCE.value,
            command=command,
            receipt=report,
            on_episode=lambda _: count(next(done), len(files)),
        )
    return report, written


def suites() -> dict[str, TaskSpec]:
    """Returns the rows of the task table that are a suite of LIBERO under its own name."""
    return {n: spec for n, spec in TASKS.items() if spec.benchmark == "libero" and n == spec.suite}


def open_conversion(folder: pathlib.Path, out: pathlib.Path, demos: int) -> Conversion:
    """Opens the conversion of all recordings below `folder`, or the first `demos` of each task."""
    from data.readers.libero_hdf5 import find_libero_files, read_libero_demo
    from data.writing.storage import sha256_of

    specs = suites()
    files = find_libero_files(folder, tuple(specs))
    recordings = [
        Demonstration(file.suite, file.task, number, *read_libero_demo(file, number))
        for file in files
        for number in (file.demos[:demos] if demos else file.demos)
    ]
    sources = {f"{file.suite}/{file.path.name}": sha256_of(file.path) for file in files}
    used = {file.suite: specs[file.suite] for file in files}
    return Conversion(out, recordings, conversion_settings(sources, used))


def success_table(report: dict[str, Any]) -> Table:
    """Table of the recordings of each suite that were converted and dropped."""
    table = Table()
    for column in ("suite", "recordings", "converted", "dropped", "rate", "95 %", "no-ops"):
        table.add_column(column, justify="left" if column == "suite" else "right")
    for suite, counts in report["suites"].items():
        low, high = success_interval(counts["converted"], counts["tried"])
        table.add_row(
            suite,
            f"{counts['recordings']}",
            f"{counts['converted']}",
            f"{counts['dropped']}",
            f"{counts['converted'] / max(counts['tried'], 1):.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{counts['no_ops']}",
        )
    return table


def print_failures(console: Console, report: dict[str, Any]) -> None:
    """Prints the recordings that were left out, with the reasons."""
    failed = {
        name: entry["outcome"]
        for name, entry in report["demos"].items()
        if entry["outcome"] != CONVERTED
    }
    for name, outcome in list(failed.items())[:SHOWN]:
        console.print(f"  {name}: {outcome}", markup=False, soft_wrap=True)
    if len(failed) > SHOWN:
        console.print(f"  and {len(failed) - SHOWN} more, see {REPORT}", markup=False)


def main(_: list[str]) -> int:
    """Returns the exit status: 0, 1 after an error or when nothing was converted, 130: Ctrl-C."""
    quiet_libraries()
    console = Console()
    try:
        report, written = convert(console, COMMAND.line)
    except KeyboardInterrupt:
        console.print("stopped; the same command resumes from here")
        return STOPPED
    except (ValueError, OSError, SimulatorSetupError, WorkerError) as error:
        console.print(str(error), style="bold red", markup=False)
        return 1
    console.print(success_table(report))
    print_failures(console, report)
    report_path = pathlib.Path(_OUT.value) / FOLDER / REPORT
    console.print(f"report: {report_path}", markup=False, soft_wrap=True)
    if written:
        console.print(f"dataset: {written.folder}", markup=False, soft_wrap=True)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
