"""A server in a process of its own, as a user starts it."""

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
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def log(self) -> str:
        """What it wrote so far."""
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
    """A server that is ready; it is killed at the end if it still runs.

    Args:
        checkpoint: to serve.
        flags: further flags of scripts/serve.py.
        seconds: to wait until it is ready.
        xla_flags: how XLA compiles; those of this process do not reach it.
        checkout: folder of another version of the project, whose server it is to be.

    Raises:
        RuntimeError: it ended, or was not ready in time; with what it wrote.
    """
    environ = dict(os.environ)
    environ["XLA_FLAGS"] = xla_flags
    if checkout:
        environ["PYTHONPATH"] = checkout
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [sys.executable, "-m", "scripts.serve", f"--checkpoint={checkpoint}"]
        command += ["--port=0", f"--output_dir={folder}", "--disable_slurm", *flags]
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environ, cwd=checkout or None
            )
        try:
            yield Server(process, _port(process, folder, seconds), folder)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[bytes], folder: pathlib.Path, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if (folder / "info.json").is_file():
            return json.loads((folder / "info.json").read_text())["port"]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not get ready: {(folder / 'log.txt').read_text()[-2000:]}")
