"""A pool of simulator processes, which get their work through pipes.

Each runs eval/simulators/worker.py with one host object. Processes of their own, because MuJoCo's
software rendering crashes beside TensorFlow, and because a crash then costs one episode.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterator, Sequence

from eval.simulators.worker import RAISED, UNSUITABLE

from .preflight import SimulatorSetupError

_ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL = 2000  # characters of a dead worker's output that go into the error
_PATIENCE_S = 5.0  # for a worker to leave by itself


class WorkerError(RuntimeError):
    """A call raised in a worker, from a bug or a wrong setup; the message has its traceback."""


class WorkerCrashError(WorkerError):
    """A worker died during a call: its simulator raised, native code crashed, or it was killed."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: connection.Connection
    log: Path
    busy: bool = True


class WorkerPool:
    """Processes that each hold one host object and share no memory with this one.

    A context manager: the end of the block ends the workers, also after Ctrl-C. They are in
    sessions of their own, so Ctrl-C reaches this process only.

    Args:
        build: makes the host inside the worker; picklable, so a class, function or partial.
        num_workers: number of processes.
        python: interpreter of the workers, which may be a simulator's own environment.

    Raises:
        WorkerError: `build` failed.
        SimulatorSetupError: `build` found that this machine cannot run the simulator.
    """

    def __init__(
        self, build: Callable[[], Any], num_workers: int, *, python: str = sys.executable
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; at least 1")
        self._build = build
        self._python = python
        self._workers: list[_Worker] = []
        self._folder = tempfile.TemporaryDirectory(prefix="xvla_jax_workers_")
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(num_workers):
                self._workers.append(self._spawn())
            for index in range(num_workers):
                self._receive(index)
            undo.pop_all()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._workers)

    def send(self, index: int, method: str, *arguments: Any) -> None:
        """Starts `host.method(*arguments)` in worker `index`, which must be idle."""
        worker = self._workers[index]
        if worker.busy:
            raise RuntimeError(f"worker {index} is still busy")
        worker.busy = True
        with contextlib.suppress(OSError):  # it died before; wait() reports it
            worker.pipe.send((method, arguments))

    def wait(self) -> list[tuple[int, Any]]:
        """Blocks until a worker is done; returns (index, value or WorkerCrashError) of each.

        A crashed worker is replaced by a new one with a new host.

        Raises:
            WorkerError: a call raised.
            SimulatorSetupError: a call found that this machine cannot run the simulator.
            RuntimeError: no worker is busy.
        """
        busy = {i: worker.pipe for i, worker in enumerate(self._workers) if worker.busy}
        if not busy:
            raise RuntimeError("no worker has anything to do")
        ready = connection.wait(list(busy.values()))
        done: list[tuple[int, Any]] = []
        for index, pipe in busy.items():
            if pipe not in ready:
                continue
            try:
                done.append((index, self._receive(index)))
            except WorkerCrashError as crash:
                done.append((index, crash))
                self._workers[index] = self._spawn()
                self._receive(index)
        return done

    def close(self) -> None:
        """Ends all workers: asks by closing the pipe, then kills."""
        for worker in self._workers:
            worker.pipe.close()
            if worker.busy:
                worker.process.kill()
        for worker in self._workers:
            try:
                worker.process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers = []
        self._folder.cleanup()

    def _spawn(self) -> _Worker:
        ours, theirs = connection.Pipe()
        log = Path(self._folder.name) / f"{len(os.listdir(self._folder.name))}.log"
        # Software OpenGL uses all cores by itself, which slows several workers down.
        environment = {"LP_NUM_THREADS": "1", **os.environ}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self._python, "-m", "eval.simulators.worker", str(theirs.fileno())],
                cwd=str(_ROOT),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        theirs.close()
        ours.send(self._build)
        return _Worker(process, ours, log)

    def _receive(self, index: int) -> Any:
        worker = self._workers[index]
        try:
            value = worker.pipe.recv()
        except (EOFError, OSError):
            status = worker.process.wait()
            worker.pipe.close()
            output = _tail(worker.log)
            if status == UNSUITABLE:
                raise SimulatorSetupError(output) from None
            if status == RAISED:
                raise WorkerError(f"error in simulator worker {index}:\n{output}") from None
            raise WorkerCrashError(
                f"simulator worker {index} died (exit status {status}):\n{output}"
            ) from None
        worker.busy = False
        return value


def run_jobs(
    pool: WorkerPool, jobs: Sequence[tuple[str, tuple[Any, ...]]]
) -> Iterator[tuple[int, Any]]:
    """Runs (method, arguments) jobs on whichever worker is free.

    Yields:
        (index of the job, value), as they finish. A job whose worker crashed is tried once more;
        the value of one that crashed twice is the `WorkerCrashError`.
    """
    waiting = list(range(len(jobs)))[::-1]
    running: dict[int, int] = {}
    crashed: dict[int, int] = {}
    while waiting or running:
        for index in range(len(pool)):
            if waiting and index not in running:
                running[index] = waiting.pop()
                method, arguments = jobs[running[index]]
                pool.send(index, method, *arguments)
        for index, value in pool.wait():
            job = running.pop(index)
            if isinstance(value, WorkerCrashError):
                crashed[job] = crashed.get(job, 0) + 1
                if crashed[job] == 1:
                    waiting.append(job)
                    continue
            yield job, value


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace")
