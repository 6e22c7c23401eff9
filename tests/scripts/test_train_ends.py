"""Runs that do not get to their last step: one true line, and the right status."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.scripts.runs import end, start, wait_for_step
from tests.small_disk import make_read_only, small_disk
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.training.workdir_lock import LOCK_NAME

pytestmark = [pytest.mark.rlds, pytest.mark.slow]


def _last(output: str) -> str:
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.strip()][-1]


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_second_run_on_a_workdir_is_refused(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    workdir = tmp_path / "w"
    first = start(demos, workdir, compiled=compiled)
    _wait_for(workdir / LOCK_NAME, first)
    status, output = end(start(demos, workdir, compiled=compiled))
    assert status == 1
    assert f"is in use by process {first.pid} on host" in _last(output)
    status, output = end(first)
    assert status == 0, output
    assert "trained 8 steps" in output
    assert not (workdir / LOCK_NAME).exists()

    status, output = end(start(demos, workdir, "--config.optimizer.iters=5", compiled=compiled))
    assert status == 0, output
    assert "trained 8 steps, 5 of which were asked for" in _last(output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_step_1(
    demos: Path, tmp_path: Path, compiled: Path, number: signal.Signals
) -> None:
    workdir = tmp_path / "w"
    process = start(demos, workdir, compiled=compiled)
    _wait_for(workdir / LOCK_NAME, process)
    process.send_signal(number)
    status, output = end(process)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], output
    assert "Traceback" not in output, output
    assert not (workdir / LOCK_NAME).exists()


def test_a_second_sigterm_loses_nothing(demos: Path, tmp_path: Path, compiled: Path) -> None:
    workdir = tmp_path / "w"
    process = start(demos, workdir, "--config.optimizer.iters=5000", compiled=compiled)
    wait_for_step(process, workdir, 1)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    status, output = end(process)
    assert status == 0, output
    stopped = int(_last(output).split("stopped at step ")[1].split(";")[0])
    assert (workdir / CHECKPOINTS / str(stopped) / "params").is_dir()


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
