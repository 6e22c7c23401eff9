"""Runs that do not get to their last step: one true line, and the right status."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scripts.runs import end, start, wait_for_step
from tests.small_disk import make_read_only, small_disk
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, find_step
from xvla_jax.training.telemetry import read_metrics
from xvla_jax.training.workdir_lock import LOCK_NAME, STALE_S, Holder

pytestmark = [pytest.mark.rlds, pytest.mark.slow]


def _last(output: str) -> str:
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.strip()][-1]


def _wait_for(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def _hold(workdir: Path, **fields: object) -> None:
    """Writes the lock of a run on another host, by default one that is silent."""
    holder = Holder.me({})
    changes = {"host": "node7", "place": "another boot", "token": "t", **fields}
    holder = dataclasses.replace(holder, **changes)  # pyright: ignore[reportArgumentType] # by name
    workdir.mkdir(exist_ok=True)
    (workdir / LOCK_NAME).write_text(json.dumps(dataclasses.asdict(holder)))


@contextlib.contextmanager
def _beating(workdir: Path, **fields: object) -> Iterator[None]:
    """Another host that holds the workdir, and gives a sign of life every 0.2 s."""
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.2):
            number += 1
            _hold(workdir, beat=number, **fields)

    _hold(workdir, **fields)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_living_run_of_this_host_is_refused_with_and_without_the_flag(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    workdir = tmp_path / "w"
    first = start(demos, workdir, compiled=compiled)
    _wait_for((workdir / LOCK_NAME).exists, first)
    others = [start(demos, workdir, *more, compiled=compiled) for more in ([], ["--take_over"])]
    for status, output in [end(process) for process in others]:
        assert status == 1
        assert f"is in use by process {first.pid} on host" in _last(output)
    status, output = end(first)
    assert status == 0, output
    assert "trained 8 steps" in output
    assert not (workdir / LOCK_NAME).exists()

    status, output = end(start(demos, workdir, "--config.optimizer.iters=5", compiled=compiled))
    assert status == 0, output
    assert "trained 8 steps, 5 of which were asked for" in _last(output)


def test_a_dead_run_of_another_host_is_taken_over_by_flag(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    workdir = tmp_path / "w"
    _hold(workdir)
    status, output = end(start(demos, workdir, "--take_over", compiled=compiled))
    assert status == 0, output
    assert "is taken over from process" in output
    assert "on host node7" in output
    assert "waiting up to" not in output
    assert "trained 8 steps" in output
    assert not (workdir / LOCK_NAME).exists()


def test_without_the_flag_a_silent_host_is_waited_for(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    workdir = tmp_path / "w"
    _hold(workdir)
    began = time.monotonic()
    status, output = end(start(demos, workdir, compiled=compiled))
    assert time.monotonic() - began > STALE_S
    assert status == 0, output
    assert "waiting up to 75 s for a sign of life (--take_over: no wait)" in output
    assert "trained 8 steps" in output


def test_a_requeued_job_follows_its_own_run_at_once(
    demos: Path, tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "w"
    _hold(workdir, job="71", restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    status, output = end(start(demos, workdir, compiled=compiled))
    assert status == 0, output
    assert "SLURM job 71, since" in output
    assert "waiting up to" not in output


def test_a_job_whose_workdir_another_job_holds_is_refused(
    demos: Path, tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "w"
    monkeypatch.setenv("SLURM_JOB_ID", "72")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with _beating(workdir, job="71", restarts=1):
        status, output = end(start(demos, workdir, compiled=compiled))
    assert status == 1, output
    assert "on host node7, SLURM job 71, since" in _last(output)
    assert [path.name for path in workdir.iterdir()] == [LOCK_NAME], "nothing was written there"


def test_another_store_is_refused_by_its_scheme(demos: Path, compiled: Path) -> None:
    status, output = end(start(demos, "s3://bucket/run", compiled=compiled))
    assert status == 2
    assert "error: --workdir is s3://bucket/run, in a bucket; a local path is needed" in output
    assert "Traceback" not in output
    assert not Path("s3:").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_step_1(
    demos: Path, tmp_path: Path, compiled: Path, number: signal.Signals
) -> None:
    workdir = tmp_path / "w"
    process = start(demos, workdir, compiled=compiled)
    _wait_for((workdir / LOCK_NAME).exists, process)
    process.send_signal(number)
    status, output = end(process)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], output
    assert "nothing is saved; the same command starts again" in _last(output)
    assert not (workdir / LOCK_NAME).exists()


def test_a_second_sigterm_before_the_first_line_of_metrics_loses_nothing(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    workdir = tmp_path / "w"
    late = ["--config.log_every=5000", "--config.save_every=2"]
    process = start(demos, workdir, "--config.optimizer.iters=5000", *late, compiled=compiled)
    _wait_for(lambda: workdir.exists() and find_step(workdir), process)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    status, output = end(process)
    assert status == 0, output
    stopped = int(_last(output).split("stopped at step ")[1].split(";")[0])
    assert (workdir / CHECKPOINTS / str(stopped) / "params").is_dir()
    assert read_metrics(workdir) == []


def test_two_ctrl_c_do_not_wait(demos: Path, tmp_path: Path, compiled: Path) -> None:
    workdir = tmp_path / "w"
    process = start(demos, workdir, "--config.optimizer.iters=5000", compiled=compiled)
    wait_for_step(process, workdir, 1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    status, output = end(process)
    assert status == 130, output
    assert "stopped at" in _last(output)


@pytest.mark.parametrize("size", ["1m", "20m"])
def test_a_full_disk_under_training(demos: Path, tmp_path: Path, compiled: Path, size: str) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        status, output = end(start(demos, disk / "w", "--config.save_every=1", compiled=compiled))
        assert status == 1, output
        assert "free" in _last(output), output
        assert _last(output).startswith("error: "), output


def test_a_read_only_disk_under_training(demos: Path, tmp_path: Path, compiled: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        make_read_only(disk)
        status, output = end(start(demos, disk / "w", compiled=compiled))
        assert status == 1
        assert _last(output) == f"error: {disk / 'w'}: Read-only file system"


def test_a_file_of_the_workdir_that_cannot_be_written(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    (tmp_path / "w").write_text(json.dumps(0))
    status, output = end(start(demos, tmp_path / "w", compiled=compiled))
    assert status == 1
    assert _last(output) == f"error: {tmp_path / 'w' / 'run.lock'}: Not a directory"
