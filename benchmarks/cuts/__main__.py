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
import math
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import NamedTuple

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cuts import stand_in
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
from xvla_jax.training.telemetry import read_metrics

_CUTS = flags.DEFINE_integer("cuts", 30, "Faults.")
_MINUTES = flags.DEFINE_float("minutes", 0.0, "No fault begins later; 0 = no limit.")
_FOLDER = flags.DEFINE_string("workdir", "outputs/cuts", "Folder of the run; emptied first.")
_STAND_IN = flags.DEFINE_bool("stand_in", False, "Supervise a program without JAX, in minutes.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments and hosts.")

# Programs run for milliseconds: what LLVM would gain is worth no compiling.
_QUICK = "--xla_backend_optimization_level=0"
_DEVICES = "--xla_force_host_platform_device_count"
COMPILED = "compiled"  # folder of programs
_FINISH_S = 200.0  # to the end, and for all to stop
_STEPS_A_FAULT = 2 * SAVE_EVERY  # trained at most from one fault to the next, on average


def _environ(folder: pathlib.Path, devices: int) -> dict[str, str]:
    return {
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_QUICK} {_DEVICES}={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(folder / COMPILED),
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
            str(sum(outcome.host == outcome.coordinator for outcome in own)),
            str(sum(not outcome.failure for outcome in own)),
            str(max(outcome.lost for outcome in own)),
            f"{statistics.median(seconds):.0f}",
            f"{max(seconds):.0f}",
            ", ".join(str(number) for number in sorted({outcome.hosts for outcome in own})),
            "; ".join(f"{cause[:60]} ({count})" for cause, count in causes.most_common(3)),
        )
    return table


class Measured(NamedTuple):
    """A run to which faults happened.

    Attributes:
        run: the run.
        outcomes: of the faults.
        complete: True where it came to its end.
        same: True where it ended at the place in the data of a run without faults.
        difference: largest relative one between the losses of both.
    """

    run: Run
    outcomes: list[Outcome]
    complete: bool
    same: bool
    difference: float


def _befall_all(run: Run, kinds: list[str], console: Console) -> tuple[list[Outcome], bool]:
    """Lets each fault befall a host; returns what became of them, and True for a complete run."""
    rng = random.Random(_SEED.value)
    outcomes: list[Outcome] = []
    until = time.monotonic() + 60 * (_MINUTES.value or math.inf)
    for number, kind in enumerate(kinds, 1):
        if time.monotonic() > until:
            break
        outcomes.append(befall(run, kind, rng))
        console.print(f"{number}/{len(kinds)} {outcomes[-1]}", markup=False)
    complete = len(outcomes) == len(kinds) and finish(run, 3 * _FINISH_S)
    for index in run.hosts:
        run.preempt(index)  # does nothing to one that has ended
    finish(run)
    console.print(f"complete: {complete}, statuses {run.statuses()}")
    return outcomes, complete


def _trained(folder: pathlib.Path, kinds: list[str], console: Console) -> Measured:
    """Lets the faults befall a training, and holds it against one of a single process."""
    write_demos(folder)
    steps = _STEPS_A_FAULT * (len(kinds) + 1)
    with (
        Network(HOSTS, folder, _SEED.value) as network,
        Run(network, folder, iters=steps, environ=_environ(folder, 1)) as run,
    ):
        outcomes, complete = _befall_all(run, kinds, console)
    straight = _straight(folder, steps)
    same = complete and saved_state(run.workdir)["position"] == saved_state(straight)["position"]
    return Measured(run, outcomes, complete, same, largest_difference(run.workdir, straight))


def _stand_in(folder: pathlib.Path, kinds: list[str], console: Console) -> Measured:
    """Lets the faults befall the stand-in, whose losses are known."""
    options = {"module": "benchmarks.cuts.stand_in", "rejoin_s": 3, "heartbeat_s": 5}
    steps = 3 * _STEPS_A_FAULT * (len(kinds) + 1)
    with (
        Network(HOSTS, folder, _SEED.value) as network,
        Run(network, folder, iters=steps, environ=_environ(folder, 1), **options) as run,
    ):
        outcomes, complete = _befall_all(run, kinds, console)
    steps = {line["step"]: line["loss"] for line in read_metrics(run.workdir)}
    whole = sorted(steps) == list(range(1, len(steps) + 1))
    same = whole and all(loss == stand_in.loss_of(step) for step, loss in steps.items())
    return Measured(run, outcomes, complete, same, 0.0 if same else math.inf)


def main(argv: list[str]) -> None:
    """Prints the table, and writes it as JSON beside the run."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    quiet_libraries()
    console, folder = Console(width=200), pathlib.Path(_FOLDER.value).resolve()
    missing = Network.missing()
    if missing:
        raise app.UsageError(f"no hosts can be made here: {missing}")
    for old in folder.glob("*"):
        if old.name != COMPILED:  # programs of another run are the same
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [list(FAULTS)[number % len(FAULTS)] for number in range(_CUTS.value)]
    random.Random(_SEED.value).shuffle(kinds)
    measure = _stand_in if _STAND_IN.value else _trained
    run, outcomes, complete, same, difference = measure(folder, kinds, console)
    goodput = journal.over_restarts(journal.attempts(run.workdir), run.lines)
    console.print(_table(outcomes))
    console.print(
        f"{sum(not o.failure for o in outcomes)} of {len(outcomes)} resumed; "
        f"{len(read_metrics(run.workdir))} steps, none missing, whose losses differ by at most "
        f"{difference:.1e} from a run without faults; the same place in the data at the end: "
        f"{same if complete else 'not run to the end'}; goodput over {goodput['attempts']:.0f} "
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
