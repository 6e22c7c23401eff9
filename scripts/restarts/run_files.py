"""Small files of a run that its supervisors share, on a disk or in a bucket."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

from eval.files import write_bytes
from xvla_jax import buckets
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, find_step, newest_complete
from xvla_jax.training.telemetry import METRICS_NAME, all_lines


def read(path: buckets.Place) -> bytes | None:
    """Returns the content of a file; None where there is none.

    Raises:
        OSError: it cannot be read.
    """
    if buckets.in_bucket(path):
        content, version = buckets.read(path)
        return None if version == buckets.ABSENT else content
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: buckets.Place, content: bytes) -> None:
    """Writes a file, which appears complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    if buckets.in_bucket(path):
        buckets.write(path, content)
    else:
        write_bytes(pathlib.Path(path), content)


def rewrite(path: buckets.Place, content: bytes) -> None:
    """Writes a file of an unchanging size in place: hosts on NFS see it when they open the file.

    Raises:
        OSError: it cannot be written.
    """
    if buckets.in_bucket(path):
        buckets.write(path, content)
        return
    handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        os.pwrite(handle, content, 0)
    finally:
        os.close(handle)


def names(folder: buckets.Place) -> list[str]:
    """Returns the names of the files in a folder, in order; none where there is no folder."""
    if buckets.in_bucket(folder):
        return sorted(entry.name for entry in buckets.entries(folder)[0])
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


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
        pathlib.Path(copy, METRICS_NAME).write_bytes(read(workdir / METRICS_NAME) or b"")
        return all_lines(pathlib.Path(copy))
