"""Processes that wait for each other, compare and report; small programs without a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.runs import free_port

pytestmark = pytest.mark.slow  # each starts two or three processes

_ROOT = Path(__file__).resolve().parents[3]
_PROGRAM = """
import logging, pathlib, sys, time
from xvla_jax.training.multihost import DistributedConfig
from xvla_jax.training.multihost import start
logging.basicConfig(level=logging.INFO, format="%(message)s")
index, count, port, timeout = map(int, sys.argv[1:5])
folder = pathlib.Path(sys.argv[5])
config = DistributedConfig("coordinator", f"127.0.0.1:{port}", count, index, timeout, 20)
with start(config) as processes:
"""


def _run(
    body: str, tmp_path: Path, *, count: int = 2, started: int = 2, timeout_s: int = 60
) -> list[tuple[int, str]]:
    """Runs ``body``, in which ``processes`` and ``folder`` are known, in ``started`` processes."""
    program = _PROGRAM + "".join(f"    {line}\n" for line in body.splitlines())
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program]
            + [str(value) for value in (index, count, port, timeout_s, tmp_path)],
            cwd=_ROOT,
            env=os.environ | {"XLA_FLAGS": ""},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in range(started)
    ]
    ended = []
    for process in running:
        try:
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        ended.append((process.returncode, output))
    return ended


def test_values_are_gathered_in_the_order_of_processes(tmp_path: Path) -> None:
    body = """for step in range(3):
    ended = processes.gather_json({"index": processes.index, "step": step}, "testing")
    assert ended == [{"index": i, "step": step} for i in range(3)], ended
processes.barrier("the end")
processes.check_shared(folder)
processes.check_same({"config": {"distributed": {"process_id": processes.index}}})
print("passed", processes.main)"""
    ended = _run(body, tmp_path, count=3, started=3)
    assert [status for status, _ in ended] == [0, 0, 0], ended
    assert ["passed True" in output for _, output in ended] == [True, False, False]
    assert not list(tmp_path.iterdir()), "the token is gone"


def test_a_late_process_is_named_with_what_is_waited_for(tmp_path: Path) -> None:
    body = """if processes.index == 1:
    time.sleep(8)
processes.barrier("opening the data")"""
    status, output = _run(body, tmp_path, timeout_s=3)[0]
    assert status == 1
    assert "opening the data: process 1 of 2 did not come within 3 s" in output


def test_a_process_that_never_starts_is_named(tmp_path: Path) -> None:
    for status, output in _run("pass", tmp_path, count=3, started=2, timeout_s=4):
        assert status != 0
        assert "timed out task names:\n2\n" in output


def test_differences_are_reported_on_every_process(tmp_path: Path) -> None:
    body = """processes.check_same({"config": {"seed": processes.index, "keep": 2}})"""
    for status, output in _run(body, tmp_path):
        assert status != 0, "1, or JAX's own end when the other is gone first"
        assert "process 1 has config.seed = 1, process 0 0" in output


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    body = """own = folder / str(processes.index)
own.mkdir()
processes.check_shared(own)"""
    for status, output in _run(body, tmp_path):
        assert status != 0, "1, or JAX's own end when the other is gone first"
        assert "is not the same folder on process 1 as on process 0" in output


def test_a_failure_is_reported_to_the_others(tmp_path: Path) -> None:
    body = """from jax.experimental.multihost_utils import sync_global_devices
sync_global_devices("the first step")
if processes.index == 1:
    raise ValueError("episode 7 is torn")
sync_global_devices("the second step")"""
    (status, output), (other, _) = _run(body, tmp_path)
    assert (status, other) == (1, 1)
    assert "process 1 ended: ValueError: episode 7 is torn" in output
    assert "no answer" not in output
