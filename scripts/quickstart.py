"""The whole path, small but real: record, write RLDS, train, export, evaluate, report.

python -m scripts.quickstart [--workdir=outputs/quickstart]

Every stage is a command of its own, and is shown before it runs. A stage that was completed with
the same command is skipped, an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.table import Table

from eval.receipt import write_json
from scripts.evaluate import RESULTS, print_table

STAGES_FILE = "stages.json"
REPORT = "report.html"

_WORKDIR = flags.DEFINE_string("workdir", "outputs/quickstart", "Folder of everything.")
_DEMONSTRATIONS = flags.DEFINE_integer("demonstrations", 80, "To record.", lower_bound=1)
_ITERS = flags.DEFINE_integer("iters", 450, "Training steps.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of recording, training and evaluation.", lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A named command, what it leaves behind, and environment variables that it is given."""

    name: str
    arguments: tuple[str, ...]  # after `python -m`
    product: str  # in the workdir
    environment: tuple[tuple[str, str], ...] = ()


def training_environment(cores: int) -> tuple[tuple[str, str], ...]:
    """One simulated device per core: XLA runs most of a small model on one thread per device.

    The malloc settings keep freed buffers, which glibc would hand back and fault in at each step.
    """
    return (
        ("XLA_FLAGS", f"--xla_force_host_platform_device_count={cores}"),
        ("MALLOC_MMAP_THRESHOLD_", str(2**32)),
        ("MALLOC_TRIM_THRESHOLD_", str(2**32)),
    )


def stages(
    workdir: str, *, demonstrations: int, iters: int, workers: int, seed: int
) -> list[Stage]:
    """The quickstart as a table."""
    return [
        Stage(
            "record demonstrations",
            (
                "scripts.record_demos",
                f"--out={workdir}/demonstrations",
                "--task=quickstart",
                f"--episodes={demonstrations}",
                f"--workers={workers}",
                "--rate_hz=10",
                f"--seed={seed}",
            ),
            "demonstrations/recording.json",
        ),
        Stage(
            "write RLDS",
            (
                "scripts.write_rlds",
                f"--episodes={workdir}/demonstrations",
                f"--root={workdir}/rlds",
                "--licence=Apache-2.0",
            ),
            "rlds/libero_demos",
        ),
        Stage(
            "train",
            (
                "scripts.train",
                "--config=configs/quickstart.py",
                f"--workdir={workdir}/train",
                f"--config.data.root={workdir}/rlds",
                f"--config.optimizer.iters={iters}",
                f"--config.seed={seed}",
            ),
            "train/checkpoints",
            training_environment(min(os.cpu_count() or 1, 8)),
        ),
        Stage(
            "export to PyTorch layout",
            (
                "scripts.convert_checkpoint",
                f"{workdir}/train",
                f"{workdir}/hf",
                "--layout=hf",
                "--verify",
                f"--report={workdir}/export.json",
            ),
            "export.json",
        ),
        Stage(
            "evaluate",
            (
                "scripts.evaluate",
                "--task=quickstart",
                f"--out={workdir}/evaluation",
                f"--policy=trained={workdir}/hf",
                f"--policy=untrained=untrained:{workdir}/hf",
                f"--policy=blind=blind:{workdir}/hf",
                "--policy=expert=expert:",
                "--film=trained",
                f"--workers={workers}",
                f"--seed={seed}",
            ),
            f"evaluation/{RESULTS}",
        ),
        Stage("report", ("scripts.report", f"--workdir={workdir}"), REPORT),
    ]


def run_stage(stage: Stage, workdir: pathlib.Path, console: Console) -> int:
    """Runs a stage unless it is complete; returns its exit status, and notes its time when 0."""
    ledger = read_ledger(workdir)
    done = ledger.get(stage.name)
    if done and done["arguments"] == list(stage.arguments) and (workdir / stage.product).exists():
        console.print(f"[bold]{stage.name}[/]: done before, in {done['seconds']:.0f} s")
        return 0
    console.rule(f"[bold]{stage.name}")
    console.print(f"python -m {shlex.join(stage.arguments)}", style="dim", markup=False)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *stage.arguments], env={**os.environ, **dict(stage.environment)}
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = process.wait()  # it has had the signal too, and saves what it has
        return status or 130
    if status == 0:
        entry = {"arguments": list(stage.arguments), "seconds": time.monotonic() - began}
        write_json(workdir / STAGES_FILE, {**ledger, stage.name: entry})
    return status


def read_ledger(workdir: pathlib.Path) -> dict[str, Any]:
    """Completed stages: name -> command and seconds."""
    path = workdir / STAGES_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


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
    for stage in table:
        status = run_stage(stage, workdir, console)
        if status:
            console.print(
                f"stage {stage.name!r} ended with status {status}; "
                "the same command goes on from here",
                style="bold red",
                markup=False,
            )
            return status
    print_table(console, json.loads((workdir / "evaluation" / RESULTS).read_text()))
    times = Table("stage", "seconds")
    ledger = read_ledger(workdir)
    for stage in table:
        times.add_row(stage.name, f"{ledger[stage.name]['seconds']:.0f}")
    times.add_row("all", f"{sum(ledger[s.name]['seconds'] for s in table):.0f}")
    console.print(times)
    console.print(f"open {(workdir / REPORT).resolve()}", style="bold", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
