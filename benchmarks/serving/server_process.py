"""Starts a server in a process of its own, as a user does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

_STATM_PAGE = os.sysconf("SC_PAGE_SIZE")
_IDLE_POLICY = pathlib.Path(__file__).with_name("idle_policy.py")
_HERE = str(pathlib.Path(__file__).parents[2])


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: its process.
        port: on loopback.
        folder: with ``info.json`` and ``log.txt``.
    """

    process: subprocess.Popen[bytes]
    port: int
    folder: pathlib.Path

    def resident_bytes(self) -> int:
        """Memory of the process that is in RAM."""
        statm = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * _STATM_PAGE

    def stop(self, seconds: float = 60.0) -> int:
        """Sends SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def log(self) -> str:
        """Text that the server has written so far."""
        return (self.folder / "log.txt").read_text()


@contextlib.contextmanager
def server(
    checkpoint: str | os.PathLike[str],
    flags: Sequence[str] = (),
    *,
    seconds: float = 900.0,
    xla_flags: str = "",
    checkout: str = "",
) -> Iterator[Server]:
    """Runs a server until the end of the block; yields it when it is ready.

    Args:
        checkpoint: to serve.
        flags: further flags of scripts/serve.py.
        seconds: to wait until it is ready.
        xla_flags: flags of XLA's compiler; those of this process do not reach it.
        checkout: folder of another version of the project, to run that version's server.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scripts.serve", f"--checkpoint={checkpoint}"]
        command += ["--port=0", f"--output_dir={folder}", "--disable_slurm", *flags]
        with _started(command, folder, seconds, xla_flags, checkout or _HERE) as one:
            yield one


@contextlib.contextmanager
def idle_server(checkout: str = "") -> Iterator[Server]:
    """Runs the server of a checkout with a policy that answers at once."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(_IDLE_POLICY), folder]
        with _started(command, folder, 60.0, "", checkout or _HERE) as one:
            yield one


@contextlib.contextmanager
def _started(
    command: Sequence[str], folder: str, seconds: float, xla_flags: str, checkout: str
) -> Iterator[Server]:
    environ = {**os.environ, "XLA_FLAGS": xla_flags, "PYTHONPATH": checkout}
    log = pathlib.Path(folder) / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environ, cwd=checkout)
    try:
        yield Server(process, _port(process, log, seconds), log.parent)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], log: pathlib.Path, seconds: float) -> int:
    end, info = time.monotonic() + seconds, log.with_name("info.json")
    while time.monotonic() < end and process.poll() is None:
        if info.is_file():
            return json.loads(info.read_text())["port"]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not get ready: {log.read_text()[-2000:]}")
