"""Freed memory stays for the next step, and goes back to the system after a long compilation."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jax import monitoring

from xvla_jax.training.cpu_memory import trim_after_compiling

_EVENT = "/jax/core/compile/backend_compile_duration"


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def test_freed_memory_goes_back_after_a_long_compilation() -> None:
    assert trim_after_compiling()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size = 100_000  # below the size that glibc maps on its own, and gives back at once
    blocks = [libc.malloc(size) for _ in range(2001)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking by itself
        libc.free(block)
    held = _resident_mb()
    monitoring.record_event_duration_secs(_EVENT, 0.1)
    assert _resident_mb() > held - 50
    monitoring.record_event_duration_secs(_EVENT, 60.0)
    assert _resident_mb() < held - 150
    libc.free(blocks[-1])


_FAULTS = """
import ctypes, resource
from xvla_jax.training.cpu_memory import keep_between_steps
kept = keep_between_steps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 100_000_000
for _ in range(2):
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
"""


@pytest.mark.parametrize(("platforms", "kept"), [("cpu", True), ("", False)])
def test_a_block_is_faulted_in_once_where_the_cpu_computes(platforms: str, kept: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS],
        cwd=Path(__file__).resolve().parents[3],
        env=os.environ | {"JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    assert said == str(kept)
    assert (int(faults) < 1_000) == kept, "pages of the second block, of 24,000"
