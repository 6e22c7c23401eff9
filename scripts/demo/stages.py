"""The stages of the quickstart: a table of commands, each run once and skipped from then on."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from eval.files import TEXT, fields, listing, mapping, read_json, write_json
from scripts.terminal import STOPPED, Termination

STAGES_FILE = "stages.json"
REPORT = "report.html"
_LEDGER = mapping(fields(arguments=listing(TEXT), seconds={"type": "number", "minimum": 0}))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A named command, its product, environment variables, and exit statuses of a success."""

    name: str
    arguments: tuple[str, ...]  # after `python -m`
    product: str  # in the workdir
    environment: tuple[tuple[str, str], ...] = ()
    ends: tuple[int, ...] = (0,)


# What differs from robot to robot: placeholders of the stages.
ROBOTS: Mapping[str, Mapping[str, str]] = {
    "libero": {
        "task": "quickstart",
        "rate_hz": "10",
        "wander": "0.04",
        "dataset": "libero_demos",
        "config": "configs/quickstart.py",
    },
    "so101": {
        "task": "so101",
        "rate_hz": "20",
        "wander": "0.03",
        "dataset": "so101_demos",
        "config": "configs/so101.py",
    },
}

_DEVICES = min(8, 1 << ((os.cpu_count() or 1).bit_length() - 1))

# A simulated device per core (a power of two, to divide the batch), as XLA runs most of a small
# model on one thread per device. The malloc settings keep freed buffers, which glibc would hand
# back, to be faulted in again at each step.
_TRAINING_ENVIRONMENT = (
    ("XLA_FLAGS", f"--xla_force_host_platform_device_count={_DEVICES}"),
    ("MALLOC_MMAP_THRESHOLD_", str(2**32)),
    ("MALLOC_TRIM_THRESHOLD_", str(2**32)),
)

# Placeholders in braces are the settings of a quickstart and a row of `ROBOTS`.
RECORD = Stage(
    "record demonstrations",
    (
        "scripts.record_demos",
        "--out={workdir}/demonstrations",
        "--task={task}",
        "--episodes={demonstrations}",
        "--workers={workers}",
        "--rate_hz={rate_hz}",
        "--wander={wander}",
        "--seed={seed}",
    ),
    "demonstrations/recording.json",
)
WRITE = Stage(
    "write RLDS",
    (
        "scripts.build_rlds",
        "--recorded={workdir}/demonstrations",
        "--recorded_as={dataset}",
        "--out={workdir}/rlds",
        "--licence=Apache-2.0",
    ),
    "rlds/{dataset}",
)
# The training's own program for a few steps; scripts/demo/budget.py reads how long one takes.
SPEED = Stage(
    "time a training step",
    (
        "scripts.train",
        "--config={config}",
        "--workdir={workdir}/speed",
        "--config.data.mixture={dataset}",
        "--config.data.root={workdir}/rlds",
        "--config.optimizer.iters=60",
        "--config.rollouts.task=",
        "--config.seed={seed}",
    ),
    "speed/metrics.jsonl",
    _TRAINING_ENVIRONMENT,
)
TRAIN = Stage(
    "train",
    (
        "scripts.train",
        "--config={config}",
        "--workdir={workdir}/train",
        "--config.data.mixture={dataset}",
        "--config.data.root={workdir}/rlds",
        "--config.optimizer.iters={iters}",
        "--config.rollouts.task=",  # the stage below evaluates, in the same minutes
        "--config.seed={seed}",
    ),
    "train/checkpoints",
    _TRAINING_ENVIRONMENT,
)
EXPORT = Stage(
    "export to PyTorch layout",
    (
        "scripts.convert_checkpoint",
        "{workdir}/train",
        "{workdir}/hf",
        "--layout=hf",
        "--overwrite",
        "--verify",
        "--report={workdir}/export.json",
    ),
    "export.json",
)
EVALUATE = Stage(
    "evaluate",
    (
        "scripts.evaluate",
        "--tasks={task}",
        "--out={workdir}/evaluation",
        "--policy=trained={workdir}/hf",
        "--policy=untrained=untrained:{workdir}/hf",
        "--policy=blind=blind:{workdir}/hf",
        "--policy=expert=expert:",
        "--film=trained",
        "--restart",
        # The demonstrations come from the same simulator, so its rendering need not be golden.
        "--accept_renderer",
        "--workers={workers}",
        "--seed={seed}",
    ),
    "evaluation/results.json",
)
# A plan that breaks the limits (status 2) is a result too: the page states it.
CERTIFY = Stage(
    "certify sampler plans",
    (
        "scripts.certify_sampler",
        "--checkpoint={workdir}/hf",
        "--data={dataset}",
        "--root={workdir}/rlds",
        "--plans=refresh2,frozen10,frozen3",
        "--seed={seed}",
    ),
    "hf/sampler_certificate.float32.json",
    ends=(0, 2),
)
STAGES = (
    RECORD,
    WRITE,
    SPEED,
    TRAIN,
    EXPORT,
    EVALUATE,
    CERTIFY,
    Stage("report", ("scripts.report", "--workdir={workdir}"), REPORT),
)


def filled(stage: Stage, settings: Mapping[str, str | int | None]) -> Stage:
    """The stage with its settings in place of their placeholders."""
    arguments = tuple(argument.format(**settings) for argument in stage.arguments)
    product = stage.product.format(**settings)
    return dataclasses.replace(stage, arguments=arguments, product=product)


def is_complete(stage: Stage, workdir: pathlib.Path) -> bool:
    """Returns True where the same command succeeded before and its product exists."""
    done = read_ledger(workdir).get(stage.name)
    return bool(
        done and done["arguments"] == list(stage.arguments) and (workdir / stage.product).exists()
    )


def run_stage(stage: Stage, workdir: pathlib.Path, console: Console) -> int:
    """Runs a stage and records command and time of a success; returns 0 after it, or the status."""
    console.rule(f"[bold]{stage.name}")
    console.print(f"python -m {shlex.join(stage.arguments)}", style="dim", markup=False)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *stage.arguments], env={**os.environ, **dict(stage.environment)}
    )
    try:
        with Termination():
            status = process.wait()
    except KeyboardInterrupt:
        status = process.wait()  # the signal reached it too; it saves its state
        return status or STOPPED
    except SystemExit:  # SIGTERM, which came to this process alone
        process.terminate()
        process.wait()
        raise
    if status in stage.ends:
        status = 0
        entry = {"arguments": list(stage.arguments), "seconds": time.monotonic() - began}
        write_json(workdir / STAGES_FILE, {**read_ledger(workdir), stage.name: entry})
    return status


def read_ledger(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the completed stages: name -> command and seconds.

    Raises:
        FileError: the file holds something else.
    """
    path = workdir / STAGES_FILE
    return read_json(path, _LEDGER) if path.is_file() else {}
