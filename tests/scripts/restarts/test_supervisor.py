"""A supervisor starts its process again, or knows that this is of no use."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from configs import debug
from scripts.restarts import journal
from scripts.restarts.supervisor import Limits, cause_of, processes_that_fit, supervise

# Runs a line for each attempt, in which `save` makes a checkpoint.
_PROGRAM = """
import os, pathlib, signal, sys, time
from scripts.restarts import journal
workdir = pathlib.Path(sys.argv[-1])
number = int(os.environ[journal.TOKEN].rpartition(".")[2])
journal.begin(workdir, processes=1, devices=1)
def save(step):
    for item in ("params", "model"):
        (workdir / "checkpoints" / str(step) / item).mkdir(parents=True)
"""


def _run(workdir: Path, *attempts: str, restarts: int = 5) -> int:
    """Supervises a program that does what the line of its attempt says."""
    body = "".join(f"if number == {i}:\n    {line}\n" for i, line in enumerate(attempts, 1))
    program = (sys.executable, "-c", _PROGRAM + body)
    config: Any = debug.get_config()
    limits = Limits(restarts, 1.0)
    return supervise(["train", str(workdir)], config, workdir, limits, program=program)


def test_a_run_that_fails_is_started_again_until_it_is_complete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    failures = ["save(10); sys.exit('error: the disk is gone')", "os.kill(os.getpid(), 9)"]
    assert _run(tmp_path, *failures, "save(20)") == 0
    tried = journal.attempts(tmp_path)
    assert [(a.first, a.saved, a.status, a.cause) for a in tried] == [
        (0, 10, 1, "the disk is gone"),
        (10, 10, -9, "killed by SIGKILL"),
        (10, 20, 0, ""),
    ]
    assert len({a.launch for a in tried}) == 1
    assert "saved up to step 10: the disk is gone" in caplog.text
    assert "starting again: restart 2 of 5" in caplog.text
    assert "goodput over 3 attempts" in caplog.text


@pytest.mark.parametrize(
    ("attempts", "restarts", "status", "started", "said"),
    [
        (["sys.exit(2)"], 5, 2, 1, "exit status 2"),
        (["sys.exit('error: no such robot')"] * 3, 5, 1, 2, "twice the same, and no checkpoint"),
        (["save(1); sys.exit(1)", "save(2); sys.exit(1)"], 1, 1, 2, "last of 1 restarts"),
        (["sys.exit(1)"], 0, 1, 1, "last of 0 restarts"),
        (["os.kill(os.getpid(), 6)"], 0, 134, 1, "killed by SIGABRT"),
        (["sys.exit(journal.RESUME)"] * 2 + ["save(9)"], 5, 0, 3, "stopped by a signal to one"),
    ],
)
def test_when_another_start_is_of_use(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    attempts: list[str],
    restarts: int,
    status: int,
    started: int,
    said: str,
) -> None:
    caplog.set_level(logging.INFO)
    assert _run(tmp_path, *attempts, restarts=restarts) == status
    assert len(journal.attempts(tmp_path)) == started
    assert said in caplog.text


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, journal.RESUME), (signal.SIGINT, 130)]
)
def test_a_signal_to_the_supervisor_reaches_the_run_and_ends_both(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    ready = tmp_path / "ready"

    def send() -> None:
        until = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    # as scripts.train does: saves, and ends with the status of the signal
    body = (
        "stop = lambda n, _: (save(7), os._exit(75 if n == 15 else 130)); "
        "signal.signal(2, stop); signal.signal(15, stop); "
        "(workdir / 'ready').touch(); time.sleep(20)"
    )
    assert _run(tmp_path, body) == status
    thread.join()
    (attempt,) = journal.attempts(tmp_path)
    assert (attempt.saved, attempt.cause) == (7, "stopped by a signal to one of the processes")


@pytest.mark.parametrize(
    ("printed", "status", "cause"),
    [
        ("no answer: processes 1, 3; killed, out of memory", 1, "no answer from process 1, 3"),
        ("no answer: process 1; killed, out of memory", 1, "no answer from process 1"),
        ("process 1 ended: ValueError: episode 7\n", 1, "process 1 ended: ValueError: episode 7"),
        ("tasks are unhealthy (stopped sending heartbeats):\n3\n1\n2\nThe tasks have crashed", -6,
         "no sign of life from process 1, 2, 3"),
        ("DEADLINE_EXCEEDED\nRPC: /xla.coordination.CoordinationService/Heartbeat\n"
         "Fatal Python error: Aborted\n", -6, "no answer from process 0"),
        ("Some timed out task names:\n3\n\n", -6, "process 3 did not connect"),
        ("process 0 of 4 ends: OSError: no space\n", 1, "OSError: no space"),
        ("error: first\nerror: last\n", 1, "last"),
        ("", -6, "killed by SIGABRT"),
        ("", 1, "exit status 1"),
    ],
)  # fmt: skip
def test_the_cause_is_named(printed: str, status: int, cause: str) -> None:
    assert cause_of(printed.splitlines(keepends=True), status) == cause


@pytest.mark.parametrize(
    ("change", "most", "devices", "number"),
    [
        ({}, 4, 1, 4),
        ({}, 3, 1, 2),  # 8 samples
        ({}, 3, None, 2),
        ({"batch_size": 12}, 3, 1, 3),
        ({"batch_size": 12}, 3, 4, 3),
        ({"batch_size": 24, "accumulate": 2}, 3, 4, 3),
        ({"batch_size": 12, "accumulate": 2}, 3, 4, 0),
        ({"batch_size_per": "device"}, 3, 1, 0),  # another batch
        ({"batch_size": 12, "mesh.fsdp": 4}, 3, 2, 2),
        ({"batch_size": 12, "mesh.fsdp": 16}, 3, 4, 0),
        ({"batch_size": 64, "mesh.data": 4, "mesh.fsdp": 4}, 3, 4, 0),
        ({"batch_size": 7}, 3, 1, 1),
    ],
)
def test_only_hosts_that_train_the_same_batch_take_part(
    change: dict[str, Any], most: int, devices: int | None, number: int
) -> None:
    config: Any = debug.get_config()
    config.distributed.num_processes = 4
    config.update_from_flattened_dict(change)
    assert processes_that_fit(config, most, devices=devices) == number
