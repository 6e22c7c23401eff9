"""Processes: what they load, what becomes of their errors and crashes, and that they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerCrashError, WorkerError, WorkerPool, run_jobs
from tests.eval import fakes


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def one(pool: WorkerPool, method: str, *arguments: object) -> object:
    pool.send(0, method, *arguments)
    ((_, value),) = pool.wait()
    return value


def test_jobs_are_shared_out_and_come_back_with_their_number() -> None:
    with WorkerPool(fakes.Host, 2) as pool:
        results = dict(run_jobs(pool, [("double", (k,)) for k in range(7)]))
    assert results == {k: 2 * k for k in range(7)}


def test_workers_load_neither_tensorflow_nor_jax() -> None:
    import jax  # the parent may have both  # noqa: F401

    with WorkerPool(fakes.Host, 1) as pool:
        loaded = one(pool, "loaded")
    assert isinstance(loaded, list)
    assert "numpy" in loaded
    assert not {"tensorflow", "jax", "flax", "xvla_jax", "data", "pytest"} & set(loaded)


def test_software_rendering_keeps_to_one_core() -> None:
    with WorkerPool(fakes.Host, 1) as pool:
        assert one(pool, "environment", "LP_NUM_THREADS") == os.environ.get("LP_NUM_THREADS", "1")


def test_an_error_comes_with_its_traceback() -> None:
    with (
        WorkerPool(fakes.Host, 1) as pool,
        pytest.raises(WorkerError, match=r"(?s)in complain.*ValueError: no such drawer"),
    ):
        one(pool, "complain")


def test_a_host_that_cannot_be_built_is_an_error() -> None:
    with pytest.raises(WorkerError, match="the simulator is not installed"):
        WorkerPool(fakes.break_at_start, 2)


def test_an_unsuitable_machine_has_its_own_error_without_traceback() -> None:
    with pytest.raises(SimulatorSetupError, match=r"^no renderer here$"):
        WorkerPool(fakes.find_no_renderer, 1)


def test_a_crash_is_named_and_the_worker_replaced() -> None:
    with WorkerPool(fakes.Host, 1) as pool:
        crash = one(pool, "die")
        assert isinstance(crash, WorkerCrashError)
        assert "exit status 9" in str(crash)
        assert "last words" in str(crash)
        assert one(pool, "double", 4) == 8


def test_a_job_is_tried_twice() -> None:
    with WorkerPool(fakes.Host, 2) as pool:
        results = dict(run_jobs(pool, [("double", (1,)), ("die", ()), ("double", (2,))]))
    assert results[0] == 2
    assert results[2] == 4
    assert isinstance(results[1], WorkerCrashError)


def test_workers_end_with_the_block_even_when_busy() -> None:
    with WorkerPool(fakes.Host, 2) as pool:
        pids = [pool_pid for _, pool_pid in run_jobs(pool, [("pid", ())] * 2)]
        pool.send(0, "sleep")
    assert not any(alive(pid) for pid in pids)


def test_a_busy_or_idle_worker_is_not_misused() -> None:
    with WorkerPool(fakes.Host, 1) as pool:
        with pytest.raises(RuntimeError, match="anything to do"):
            pool.wait()
        pool.send(0, "sleep")
        with pytest.raises(RuntimeError, match="still busy"):
            pool.send(0, "sleep")


def test_a_pool_needs_a_worker() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(fakes.Host, 0)


# A shell starts what runs in its background with Ctrl-C ignored, which children inherit.
PARENT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerPool, run_jobs
from tests.eval import fakes
with WorkerPool(fakes.Host, 2) as pool:
    print(*(pid for _, pid in run_jobs(pool, [("pid", ()), ("pid", ())])), flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("signum", "then"),
    [
        (signal.SIGINT, 'list(run_jobs(pool, [("sleep", ()), ("sleep", ())]))'),
        (signal.SIGKILL, "input()"),  # nobody is left to end them: they see the pipe close
    ],
)
def test_workers_end_with_their_parent(signum: int, then: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then)],
        cwd=Path(__file__).resolve().parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    watchdog = threading.Timer(60, parent.kill)
    watchdog.start()
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)  # into the blocking call
        parent.send_signal(signum)
        parent.communicate(timeout=30)
    finally:
        watchdog.cancel()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
