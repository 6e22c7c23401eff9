"""A run under a supervisor, killed and then stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from scripts.restarts import journal
from scripts.run_summary import summary
from tests.scripts.runs import Process, end, free_port, start, wait_for_step
from xvla_jax.training.telemetry import all_lines

pytestmark = [pytest.mark.rlds, pytest.mark.slow]


def _child(process: Process) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def test_a_killed_run_starts_again_by_itself_and_a_stop_says_that_it_is_not_complete(
    demos: Path, tmp_path: Path, compiled: Path
) -> None:
    workdir = tmp_path / "w"
    # a host alone that gathers, as one of several does
    places = {"kind": "coordinator", "address": f"127.0.0.1:{free_port()}", "num_processes": 1}
    flags = [f"--config.distributed.{name}={value}" for name, value in places.items()]
    long = ["--config.optimizer.iters=5000", "--config.save_every=4", "--restarts=3"]
    process = start(demos, workdir, *flags, *long, compiled=compiled)
    wait_for_step(process, workdir, 6)
    os.kill(_child(process), signal.SIGKILL)
    killed_at = all_lines(workdir)[-1]["step"]
    wait_for_step(process, workdir, killed_at + 2)
    process.send_signal(signal.SIGTERM)
    status, output = end(process)
    assert status == journal.RESUME, output
    assert "starting again: restart 1 of 3" in output
    killed, stopped = journal.attempts(workdir)
    assert (killed.cause, killed.status) == ("killed by SIGKILL", -signal.SIGKILL)
    assert (stopped.cause, stopped.status) == (journal.STOPPED, journal.RESUME)
    assert killed_at - 4 <= stopped.first <= killed_at, "at most an interval is lost"
    assert stopped.first == killed.saved
    assert stopped.saved > killed_at
    assert summary(workdir)["restarts"] == "1"
