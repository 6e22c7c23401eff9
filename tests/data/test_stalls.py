"""A read that stands still is named and ended, even where C code holds Python's lock."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.stalls import end_reads_after, read_of

ROOT = Path(__file__).resolve().parents[2]
# PyDLL keeps Python's lock, as h5py does
READ = """
import ctypes, sys, time
from data.faults import attempt
from data.stalls import end_reads_after
end_reads_after({limit})
for number in range(3):
    attempt("arm", f"{{number}}.hdf5", lambda: None)
attempt("arm", "stuck.hdf5", lambda: ctypes.PyDLL(None).{call}({seconds}))
print("came back")
"""


def run(limit, seconds, call="sleep"):
    return subprocess.run(
        [sys.executable, "-c", READ.format(limit=limit, seconds=seconds, call=call)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_read_that_stands_still_is_named_and_ended():
    began = time.monotonic()
    ended = run(limit=0.5, seconds=50)
    assert ended.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 20
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: dataset 'arm', episode stuck.hdf5: reading it has not ended")
    assert "raise read_limit_s" in line


@pytest.mark.parametrize("limit", [0, 30])
def test_a_slow_read_within_the_limit_comes_back(limit):
    ended = run(limit=limit, seconds=1)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "came back\n", "")


def test_watching_costs_microseconds():
    end_reads_after(60)
    try:
        began = time.perf_counter()
        for _ in range(1000):
            with read_of("dataset 'arm', episode 7"):
                pass
        assert (time.perf_counter() - began) / 1000 < 1e-3
    finally:
        end_reads_after(0)
    with pytest.raises(ValueError, match="read_limit_s is -1; it must be 0 or more"):
        end_reads_after(-1)


def test_a_forked_process_is_not_mixed_up():
    end_reads_after(60)
    try:
        child = os.fork()
        if child == 0:
            with read_of("x"):
                pass
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        end_reads_after(0)
