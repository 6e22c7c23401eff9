"""Kills a run in a bucket on two hosts and resumes it on one, and the reverse.

``python -m benchmarks.kills.hosts [--place=gs://BUCKET/FOLDER] [--workdir=FOLDER]``

A host is a process with one device, or with two where it is alone. The tiny model is trained to the
end on a disk without a kill; then, for each direction, all processes get SIGKILL when the middle
checkpoint is complete, and others train the rest. The table has where each of the runs differs from
the first: losses of every step, parameters, moments, position in the data. Hardware: CPU. Time: two
minutes on two quiet cores.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.kills.killed_runs import write_demos
from benchmarks.kills.run_state import different
from scripts.places.files import place_of
from scripts.restarts.run_files import newest_step
from xvla_jax import buckets

_PLACE = flags.DEFINE_string("place", "", "New folder of the runs; that of --workdir if not given.")
_FOLDER = flags.DEFINE_string("workdir", "outputs/hosts", "Folder on this machine; emptied first.")

_DEVICES = 2  # of all hosts together
_ITERS, _SAVE_EVERY = 24, 8  # a save starts every 4
_MIDDLE = 8
_LIMIT_S = 900
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(
    folder: pathlib.Path, workdir: buckets.Place, hosts: int
) -> list[subprocess.Popen[bytes]]:
    """Starts a run on so many hosts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        *(sys.executable, "-m", "scripts.train", "--config=configs/debug.py"),
        *("--config.from_scratch=True", f"--config.data.root={folder / 'demos'}"),
        *(f"--config.optimizer.iters={_ITERS}", f"--config.save_every={_SAVE_EVERY}"),
        *(f"--config.data.lanes={_DEVICES}", f"--workdir={workdir}"),
    ]
    if hosts > 1:
        places = ("kind=coordinator", f"address=127.0.0.1:{port}", f"num_processes={hosts}")
        command += [f"--config.distributed.{field}" for field in places]
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": " ".join(
            (
                os.environ.get("XLA_FLAGS", ""),
                f"--xla_force_host_platform_device_count={_DEVICES // hosts}",
            )
        ),
    }
    processes = []
    for host in range(hosts):
        own = [f"--config.distributed.process_id={host}"] if hosts > 1 else []
        with (folder / f"{workdir.name}.{host}.log").open("ab") as log:
            processes.append(
                subprocess.Popen([*command, *own], cwd=_ROOT, env=environ, stdout=log, stderr=log)
            )
    return processes


def _finish(folder: pathlib.Path, workdir: buckets.Place, hosts: int) -> None:
    """Trains to the end.

    Raises:
        RuntimeError: a process failed.
    """
    statuses = [process.wait() for process in _start(folder, workdir, hosts)]
    if any(statuses):
        raise RuntimeError(f"{workdir}: exit statuses {statuses}; see {folder}/*.log")


def _kill(folder: pathlib.Path, workdir: buckets.Place, hosts: int) -> int:
    """Trains to the middle, and kills all processes; returns the step that is complete then.

    Raises:
        RuntimeError: the run ended before, or came to no checkpoint.
    """
    processes, until = _start(folder, workdir, hosts), time.monotonic() + _LIMIT_S
    try:
        while newest_step(workdir) < _MIDDLE:
            if any(process.poll() is not None for process in processes) or time.monotonic() > until:
                raise RuntimeError(f"{workdir}: no step {_MIDDLE}; see {folder}/*.log")
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    return newest_step(workdir)


def _on_disk(folder: pathlib.Path, workdir: buckets.Place) -> pathlib.Path:
    """Returns a copy of a run that is in a bucket."""
    if isinstance(workdir, pathlib.Path):
        return workdir
    copy = folder / "copies" / workdir.name
    buckets.download(workdir, buckets.files(workdir), copy)
    return copy


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    folder = pathlib.Path(_FOLDER.value).resolve()
    place = place_of(_PLACE.value, flag="--place") if _PLACE.value else folder
    shutil.rmtree(folder, ignore_errors=True)
    write_demos(folder)
    straight = folder / "straight"
    _finish(folder, straight, 1)
    table = Table(title=f"{_ITERS} steps in {place}", box=box.SIMPLE)
    for column in ("hosts, killed", "at step", "hosts, resumed", "differs from one undisturbed"):
        table.add_column(column)
    for killed, resumed in ((2, 1), (1, 2)):
        workdir = place / f"{killed}_then_{resumed}"
        step = _kill(folder, workdir, killed)
        _finish(folder, workdir, resumed)
        differences = different(_on_disk(folder, workdir), straight)
        table.add_row(str(killed), str(step), str(resumed), ", ".join(differences) or "in nothing")
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
