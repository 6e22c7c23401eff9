"""Training runs as processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.quick_compile import QUICK_COMPILE
from xvla_jax.training.telemetry import METRICS_NAME, read_metrics

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 600

Process = subprocess.Popen[str]


def start(
    root: Path, workdir: Path | str, *more: str, devices: int = 1, compiled: Path | None = None
) -> Process:
    """Eight steps of configs/debug.py; ``more`` flags come last and win."""
    command = [sys.executable, "-m", "scripts.train", "--config=configs/debug.py"]
    command += [f"--workdir={workdir}", f"--config.data.root={root}", "--config.optimizer.iters=8"]
    command += [] if any("init_from" in flag for flag in more) else ["--config.from_scratch=True"]
    environ = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}"
    }
    if compiled:
        environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
        environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [*command, *more],
        cwd=_ROOT,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def start_two(
    root: Path, workdir: Path, *more: str, compiled: Path, only_second: str = ""
) -> list[Process]:
    """The same by two processes of one device each; ``only_second`` is a flag of one of them."""
    both = ["kind=coordinator", f"address=127.0.0.1:{free_port()}", "num_processes=2"]
    both += ["timeout_s=120", "heartbeat_s=20"]
    flags = [f"--config.distributed.{flag}" for flag in both]
    return [
        start(
            root,
            workdir,
            *flags,
            f"--config.distributed.process_id={index}",
            *more,
            *([only_second] if index and only_second else []),
            compiled=compiled,
        )
        for index in range(2)
    ]


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def end(process: Process) -> tuple[int, str]:
    """Exit status and everything printed."""
    try:
        output, _ = process.communicate(timeout=_LIMIT_S)
    finally:
        process.kill()  # where it hangs; of no effect on one that has ended
    return process.returncode, output


def wait_for_step(process: Process, workdir: Path, step: int) -> None:
    """Returns when the log has that step."""
    deadline = time.monotonic() + _LIMIT_S
    while not any(line["step"] >= step for line in read_metrics(workdir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no step {step} in {workdir / METRICS_NAME}"
        time.sleep(0.05)
