"""`python -m eval.simulators.worker FD`: serves one simulator over an inherited pipe.

A program of its own and no multiprocessing child: such a child imports the parent's main module
again, and with it TensorFlow and JAX, which must not share a process with MuJoCo's rendering.
`eval.simulators.workers.WorkerPool` starts it, in a simulator's own environment where one is
needed.
"""

from __future__ import annotations

import os
import sys
import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn

from .preflight import SimulatorError, SimulatorSetupError, refuse_modules

# Exit statuses; a crash has that of a signal, or another.
RAISED = 70  # a call raised
UNSUITABLE = 71  # this machine cannot run the simulator
SIMULATOR_RAISED = 72


def serve(connection: Connection) -> None:
    """Builds the host from the first message, then runs (method, arguments) until the pipe closes.

    Each request is answered with the value. An error ends the process, see `leave`.
    """
    refuse_modules(("tensorflow", "jax"))
    host: Any = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        if host is None:
            host, value = request(), None
        else:
            method, arguments = request
            value = getattr(host, method)(*arguments)
        connection.send(value)


def leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends the process after an error, with a status that no crash has."""
    if isinstance(error, SimulatorSetupError):
        sys.stderr.write(str(error))
        _exit(UNSUITABLE)
    traceback.print_exception(kind, error, trace)
    _exit(SIMULATOR_RAISED if isinstance(error, SimulatorError) else RAISED)


def _exit(status: int) -> NoReturn:
    # Without OpenGL's own clean-up, which prints errors and sometimes crashes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.excepthook = leave
    with Connection(int(sys.argv[1])) as pipe:
        serve(pipe)
    _exit(0)
