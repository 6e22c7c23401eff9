"""Cuts a run of four hosts off, slows it and kills it: ``python -m benchmarks.cuts``.

Four hosts in network namespaces train the tiny model under ``scripts.train --restarts``. Faults
befall a random host each: its network is cut or slow (20 % of the packets lost, the others 50 ms
late), its process is killed, it is lost with its supervisor, or it gets SIGTERM. The coordinator is
one of the four. The table has what each kind did; the finished run is held against one of a single
process on four devices. Hardware: CPU, root, 5 GB of memory. Time: a minute or two a fault on two
cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
from collections import Counter

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cuts.hosts import (
    FAULTS,
    HOSTS,
    SAVE_EVERY,
    Outcome,
    Run,
    befall,
    finish,
    largest_difference,
)
from benchmarks.cuts.network import Network
from benchmarks.kills.killed_runs import write_demos
from benchmarks.kills.run_state import saved_state
from scripts.restarts import journal
from scripts.terminal import quiet_libraries

_CUTS = flags.DEFINE_integer("cuts", 30, "Faults.")
_FOLDER = flags.DEFINE_string("workdir", "outputs/cuts", "Folder of the run; emptied first.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments and hosts.")

_STEPS_A_FAULT = 2 * SAVE_EVERY  # trained at most from one fault to the next, on average


def _environ(folder: pathlib.Path, devices: int) -> dict[str, str]:
    return {
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _straight(folder: pathlib.Path, steps: int) -> pathlib.Path:
    """Trains the same steps in one process on as many devices."""
    workdir = folder / "straight"
    command = [
        *(sys.executable, "-m", "scripts.train", "--config=configs/debug.py"),
        *("--config.from_scratch=True", f"--workdir={workdir}", f"--config.data.lanes={HOSTS}"),
        *(f"--config.data.root={folder / 'demos'}", f"--config.optimizer.iters={steps}"),
        f"--config.save_every={SAVE_EVERY}",
    ]
    with (folder / "straight.log").open("wb") as log:
        environ = os.environ | _environ(folder, HOSTS)
        subprocess.run(command, env=environ, stdout=log, stderr=log, check=True)
    return workdir


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(title=f"Faults of a run with config.save_every {SAVE_EVERY}", box=box.SIMPLE)
    for column in ("fault", "times", "of the coordinator", "resumed", "steps lost, max"):
        table.add_column(column)
    for column in ("s until the next step, median", "max", "on hosts", "causes"):
        table.add_column(column)
    for fault in FAULTS:
        own = [outcome for outcome in outcomes if outcome.fault == fault]
        if not own:
            continue
        seconds = [outcome.resumed_s for outcome in own]
        causes = Counter(cause for outcome in own for cause in outcome.causes)
        table.add_row(
            fault,
            str(len(own)),
            str(sum(outcome.host == 0 for outcome in own)),
            str(sum(not outcome.failure for outcome in own)),
            str(max(outcome.lost for outcome in own)),
            f"{statistics.median(seconds):.0f}",
            f"{max(seconds):.0f}",
            ", ".join(str(number) for number in sorted({outcome.hosts for outcome in own})),
            "; ".join(f"{cause[:60]} ({count})" for cause, count in causes.most_common(3)),
        )
    return table


def main(argv: list[str]) -> None:
    """Prints the table, and writes it as JSON beside the run."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    quiet_libraries()
    console, folder = Console(width=200), pathlib.Path(_FOLDER.value).resolve()
    missing = Network.missing()
    if missing:
        raise app.UsageError(f"no hosts can be made here: {missing}")
    shutil.rmtree(folder, ignore_errors=True)
    write_demos(folder)
    rng = random.Random(_SEED.value)
    kinds = [list(FAULTS)[number % len(FAULTS)] for number in range(_CUTS.value)]
    rng.shuffle(kinds)
    outcomes = []
    steps = _STEPS_A_FAULT * (len(kinds) + 1)
    environ = _environ(folder, 1)
    with (
        Network(HOSTS, folder, _SEED.value) as network,
        Run(network, folder, iters=steps, environ=environ) as run,
    ):
        for number, kind in enumerate(kinds, 1):
            outcomes.append(befall(run, kind, rng.randrange(HOSTS), rng))
            console.print(f"{number}/{len(kinds)} {outcomes[-1]}", markup=False)
        console.print(f"complete: {finish(run)}, statuses {run.statuses()}")
    straight = _straight(folder, steps)
    same = saved_state(run.workdir)["position"] == saved_state(straight)["position"]
    difference = largest_difference(run.workdir, straight)
    goodput = journal.over_restarts(journal.attempts(run.workdir), run.lines)
    console.print(_table(outcomes))
    console.print(
        f"{sum(not o.failure for o in outcomes)} of {len(outcomes)} resumed; {steps} steps; the "
        f"place in the data is {'that' if same else 'NOT that'} of a run without faults, losses "
        f"differ by at most {difference:.1e} of themselves; goodput over {goodput['attempts']:.0f} "
        f"attempts {goodput['goodput']:.0%}"
    )
    record = {
        "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
        "same_position": same,
        "largest_difference": difference,
        "goodput": goodput,
    }
    (folder / "cuts.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
