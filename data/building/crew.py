"""Shards written by several processes, each with TensorFlow and a reader of its own.

A worker tells every episode through its pipe. It ends when the pipe does, so no worker outlives the
run that started it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from data.extras import needs
from data.sources import open_reader
from data.stalls import end_reads_after
from data.trajectory import Reader
from data.writing.shards import Event, Job, write_shards

with needs("data"):
    import tensorflow as tf


class WorkerLostError(RuntimeError):
    """A worker process ended without a word."""


class _Failed(NamedTuple):
    """What went wrong in a worker."""

    reason: str


_READY = "ready for a task"


def events(
    job: Job, tasks: Sequence[Sequence[int]], *, reader: Reader, workers: int
) -> Generator[Event]:
    """Do the tasks, each a list of shards; with one worker in this process, with `reader`.

    Raises:
        ValueError: a source or a disk failed; not for bad episodes, which are events.
        WorkerLostError: a worker was killed, for want of memory for instance.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield from write_shards(job, reader, task)
        return
    crew = _start(job, min(workers, len(tasks)))
    try:
        yield from _direct(crew, deque(tasks))
    finally:
        for pipe, process in crew.items():
            pipe.close()
            process.terminate()
        for process in crew.values():
            process.join()


def _start(job: Job, count: int) -> dict[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    crew: dict[Connection, BaseProcess] = {}
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, job), name=f"build-{number}", daemon=True
        )
        process.start()
        theirs.close()
        crew[ours] = process
    return crew


def _direct(crew: dict[Connection, BaseProcess], waiting: deque[Sequence[int]]) -> Iterator[Event]:
    busy = list(crew)
    while busy:
        for pipe in wait(busy):
            assert isinstance(pipe, Connection)
            try:
                said = pipe.recv()
                if said == _READY and waiting:
                    pipe.send(waiting.popleft())
                    continue
            except (EOFError, ConnectionError):
                raise _lost(crew[pipe]) from None
            if isinstance(said, _Failed):
                raise ValueError(said.reason)
            if said == _READY:
                busy.remove(pipe)
            else:
                yield said


def _lost(process: BaseProcess) -> WorkerLostError:
    process.join()
    return WorkerLostError(
        f"worker {process.name} ended with status {process.exitcode}; was it killed, for want of "
        "memory? what is finished is kept: run the same command again"
    )


def _work(pipe: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that directs
    try:
        end_reads_after(job.read_limit_s)
        reader = open_reader(job.spec, job.root, job.places)
        while True:
            pipe.send(_READY)
            for event in write_shards(job, reader, pipe.recv()):
                pipe.send(event)
    except (EOFError, ConnectionError):
        return  # the process that directs is gone
    except (ValueError, OSError, tf.errors.OpError) as error:
        pipe.send(_Failed(str(error)))
