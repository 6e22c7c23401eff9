"""A pool of simulator processes, which get their work through pipes.

Each runs eval/simulators/worker.py with one host object. Processes of their own, because MuJoCo's
software rendering crashes beside TensorFlow, and because a crash then costs one episode.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterator, Sequence

from eval import wire

from .preflight import SimulatorSetupError
from .worker import FAILED, RAISED, SET_UP, UNSUITABLE, Call, records_of

_ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL = 2000  # characters of a dead worker's output that go into the error
_PATIENCE_S = 5.0  # for a worker to leave by itself
_CURE = (
    "--simulator_python or the benchmark's variable (docs/evaluate.md) names a Python 3.8 or newer "
    "that has numpy and the simulator"
)


def python_of(benchmark: str, given: str | None) -> str:
    """Returns the Python of a benchmark's simulator.

    It is `given`, else that of the environment variable `python_variable`, else this one.
    """
    return given or os.environ.get(python_variable(benchmark)) or sys.executable


def python_variable(benchmark: str) -> str:
    """Name of the variable that names the Python of a benchmark's simulator: CALVIN_PYTHON, ..."""
    return f"{benchmark.upper()}_PYTHON"


class WorkerError(RuntimeError):
    """A call raised in a worker, from a bug or a wrong setup; the message has its traceback."""


class WorkerCrashError(WorkerError):
    """A worker died during a call: its simulator raised, native code crashed, or it was killed.

    Attributes:
        in_set_up: True where it died while an environment was being built.
    """

    in_set_up = False


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: connection.Connection
    log: Path
    busy: bool = True
    in_set_up: bool = False


class WorkerPool:
    """Processes that each hold one host object and share no memory with this one.

    A context manager: the end of the block ends the workers, also after Ctrl-C. They are in
    sessions of their own, so Ctrl-C reaches this process only.

    Args:
        build: makes the host inside the worker: a class or function of a module, or a partial of
            one. Its arguments are such callables again, or what `eval.wire` sends. A class may have
            `records`, a `wire.table` of what its own calls send beside.
        num_workers: number of processes.
        python: interpreter of the workers, which may be a simulator's own environment.

    Raises:
        WorkerError: `build` failed.
        SimulatorSetupError: `python` cannot be started or has no numpy, or `build` found that this
            machine cannot run the simulator.
    """

    def __init__(
        self, build: Callable[[], Any], num_workers: int, *, python: str = sys.executable
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; at least 1")
        self._names: list[str] = []
        self._build = _callable_by_name(build, self._names)
        self._records = records_of(build.func if isinstance(build, functools.partial) else build)
        self._python = python
        self._workers: list[_Worker] = []
        self._folder = tempfile.TemporaryDirectory(prefix="xvla_jax_workers_")
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(num_workers):
                self._workers.append(self._spawn())
            for index in range(num_workers):
                self._await_host(index)
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
            wire.send(worker.pipe, (method, arguments), self._records)

    def wait(self) -> list[tuple[int, Any]]:
        """Blocks until a worker is done; returns (index, value or WorkerCrashError) of each.

        A crashed worker is replaced by a new one with a new host.

        Raises:
            WorkerError: a call raised.
            SimulatorSetupError: a call found that this machine cannot run the simulator.
            RuntimeError: no worker is busy.
        """
        busy = {worker.pipe: i for i, worker in enumerate(self._workers) if worker.busy}
        if not busy:
            raise RuntimeError("no worker has anything to do")
        done: list[tuple[int, Any]] = []
        while not done:
            ready = connection.wait(list(busy))
            for index in [index for pipe, index in busy.items() if pipe in ready]:
                try:
                    answered, value = self._receive(index)
                except WorkerCrashError as crash:
                    answered, value = True, crash
                    self._workers[index] = self._spawn()
                    self._await_host(index)
                if answered:
                    done.append((index, value))
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
        program = [self._python, "-m", "eval.simulators.worker", str(theirs.fileno())]
        with log.open("wb") as output, theirs:
            try:
                process = subprocess.Popen(
                    [*program, *self._names],
                    cwd=str(_ROOT),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise SimulatorSetupError(
                    f"the simulator's Python {self._python} cannot be started "
                    f"({error.strerror}); {_CURE}"
                ) from error
        with contextlib.suppress(OSError):  # it died at once; `_await_host` reports it
            wire.send(ours, self._build, self._records)
        return _Worker(process, ours, log)

    def _await_host(self, index: int) -> None:
        """Waits until the host of a new worker is built."""
        try:
            self._receive(index)
        except WorkerCrashError as crash:
            last_line = str(crash).strip().splitlines()[-1]
            raise SimulatorSetupError(
                f"no simulator worker starts in {self._python} ({last_line}); {_CURE}"
            ) from crash

    def _receive(self, index: int) -> tuple[bool, Any]:
        """Returns (True, value of the call), or (False, None) where the message is no answer."""
        worker = self._workers[index]
        status = text = None
        try:
            kind, value = wire.receive(worker.pipe, self._records)
            if kind == SET_UP:
                worker.in_set_up = value
                return False, None
            if kind == FAILED:
                status, text = value
        except (EOFError, OSError):
            kind, value = FAILED, None
        if kind == FAILED:
            raise self._error(index, status, text) from None
        worker.busy = False
        return True, value

    def _error(self, index: int, status: int | None, text: str | None) -> RuntimeError:
        """Returns the error of a worker that ended, or that ends after sending status and text."""
        worker = self._workers[index]
        worker.pipe.close()
        died_with = worker.process.wait()
        if text is None:
            text = worker.log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace")
        if status == UNSUITABLE:
            return SimulatorSetupError(text)
        if status == RAISED:
            return WorkerError(f"error in simulator worker {index}:\n{text}")
        crash = WorkerCrashError(
            f"simulator worker {index} died (exit status {died_with}):\n{text}"
        )
        crash.in_set_up = worker.in_set_up
        return crash


def refuse_second(crash: WorkerCrashError) -> None:
    """Refuses to count the second crash of a job as a failed episode where it is of the set-up.

    Raises:
        SimulatorSetupError: the worker died while its environment was being built.
    """
    if crash.in_set_up:
        raise SimulatorSetupError(f"the simulator cannot be set up (tried twice): {crash}")


def run_jobs(
    pool: WorkerPool, jobs: Sequence[tuple[str, tuple[Any, ...]]]
) -> Iterator[tuple[int, Any]]:
    """Runs (method, arguments) jobs on whichever worker is free.

    Yields:
        (index of the job, value), as they finish. A job whose worker crashed is tried once more;
        the value of one that crashed twice is the `WorkerCrashError`.

    Raises:
        WorkerError: a job raised.
        SimulatorSetupError: this machine cannot run the simulator, or a set-up crashed twice.
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
                refuse_second(value)
            yield job, value


def _callable_by_name(value: Any, names: list[str]) -> Any:
    """Returns a callable as a `Call`, its name appended to `names`; another value as it is.

    Raises:
        ValueError: the callable is none of a module.
    """
    if not callable(value):
        return value
    bound = value if isinstance(value, functools.partial) else functools.partial(value)
    function: Any = bound.func
    path = getattr(function, "__qualname__", "<none>")
    if "<" in path:
        raise ValueError(f"a worker cannot import {function!r}; give a function of a module")
    place = len(names)
    names.append(f"{function.__module__}:{path}")
    return Call(
        place,
        tuple(_callable_by_name(part, names) for part in bound.args),
        {key: _callable_by_name(part, names) for key, part in bound.keywords.items()},
    )
