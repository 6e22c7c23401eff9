"""Progress of a run as its supervisor reads it, on a disk or in a bucket."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

from scripts.places import files
from xvla_jax import buckets
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, find_step, newest_complete
from xvla_jax.training.telemetry import METRICS_NAME, all_lines


def newest_step(workdir: buckets.Place) -> int:
    """Returns the step of the newest complete checkpoint of a run; 0 if there is none."""
    if buckets.in_bucket(workdir):
        folder = workdir / CHECKPOINTS
        step = newest_complete(folder, buckets.entries(folder)[1])
    else:
        step = find_step(workdir)
    return int(step.name) if step else 0


def metrics(workdir: buckets.Place) -> list[dict[str, Any]]:
    """Returns every line of a run's metrics in the order written."""
    if not buckets.in_bucket(workdir):
        return all_lines(pathlib.Path(workdir))
    with tempfile.TemporaryDirectory() as copy:
        pathlib.Path(copy, METRICS_NAME).write_bytes(files.read(workdir / METRICS_NAME) or b"")
        return all_lines(pathlib.Path(copy))
