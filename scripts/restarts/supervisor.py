"""Starts a training run again after a failure: ``scripts.train --restarts=N``.

The supervisor of a host holds no device. It starts the same command as a process of its own, hands
signals on, and judges how it ended. With ``config.distributed.kind=coordinator`` the supervisors
agree before each attempt on the hosts that take part (`gathering`); with the other kinds the
environment says who does, and each host starts its own process again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO, Any, Final, Self

from scripts.restarts import journal, run_files
from scripts.restarts.gathering import Gathering, Plan
from scripts.terminal import STOPPED, handled
from xvla_jax.buckets import Place
from xvla_jax.errors import ConfigError
from xvla_jax.training.telemetry import duration

PROGRAM: Final = (sys.executable, "-m", "scripts.train")
_USAGE: Final = (2,)  # statuses that no restart changes
_TAIL: Final = 400  # lines of a process that are searched for the reason of its end
_POLL_S: Final = 0.2
_LOOK_S: Final = 2.0  # between two looks at the other hosts while the process runs
_COPY_S: Final = 5.0  # for what an ended process printed; what it started may hold its stderr open
_GRACE_S: Final = 30.0  # beyond heartbeat_s for a process to end by itself when others are gone

# (pattern in what a process printed, cause); the first row that matches counts, its newest match
_CAUSES: Final[tuple[tuple[str, str], ...]] = (
    (r"no answer: process(?:es)? ([\d, ]+)", "no answer from process {}"),
    (r"process (\d+ ended: .+)", "process {}"),
    (r"stopped sending heartbeats\)?:?\s*((?:\d+\s+)+)", "no sign of life from process {}"),
    (r"timed out task names:\s*((?:\d+\s+)+)", "process {} did not connect"),
    (r"CoordinationService/Heartbeat|leader task was preempted", "no answer from process 0"),
    (r"process \d+ of \d+ ends: (.+)", "{}"),
    (r"(?m)^error: (.+)", "{}"),
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a supervised run.

    Attributes:
        restarts: starts after the first.
        rejoin_s: without a sign of life for so long, a host is left out of the next attempt.
    """

    restarts: int
    rejoin_s: float


def supervise(
    argv: Sequence[str],
    config: Any,
    workdir: Place,
    limits: Limits,
    *,
    program: Sequence[str] = PROGRAM,
) -> int:
    """Trains until the run is complete, or until another start would not help.

    Args:
        argv: the command line; each attempt has it, and the place of its process behind it.
        config: as configs/base.py has it.
        workdir: of the run, on a file system that all hosts share.
        limits: when to give up.
        program: that each attempt starts.

    Returns:
        The exit status: 0 complete, `journal.RESUME` saved but not complete, 130 after Ctrl-C, else
        that of the process that failed.

    Raises:
        ConfigError, DistributedError: the other hosts are not found.
    """
    with _Signals() as signals, contextlib.ExitStack() as stack:
        hosts = None
        if config.distributed.kind == "coordinator":
            hosts = stack.enter_context(_gathering(config, workdir, limits))
        command = [*program, *argv[1:]]
        supervisor = _Supervisor(command, config, workdir, limits, hosts, signals)
        return supervisor.run()


def processes_that_fit(config: Any, most: int, *, devices: int | None) -> int:
    """Returns the largest number of processes that train the same batch.

    Args:
        config: as configs/base.py has it.
        most: hosts that are left.
        devices: of one process; None where no attempt has said so yet.

    Returns:
        0 where no number fits.
    """
    count = config.distributed.num_processes
    if most >= count:
        return count
    if config.batch_size_per != "run":
        return 0  # fewer devices would be another batch
    return next((n for n in range(most, 0, -1) if _fits(config, n, devices)), 0)


def _fits(config: Any, processes: int, devices: int | None) -> bool:
    if config.batch_size % processes:
        return False
    if devices is None:
        return True
    total = processes * devices
    data, fsdp = config.mesh.data, config.mesh.fsdp
    known = [size for size in (data, fsdp) if size != -1]
    laid = total == data * fsdp if len(known) == 2 else all(total % size == 0 for size in known)
    return laid and config.batch_size % (total * config.accumulate) == 0


def cause_of(lines: Sequence[str], status: int) -> str:
    """Returns why a process ended, from the last lines that it printed and its status."""
    text = "".join(lines)
    for pattern, form in _CAUSES:
        matches = list(re.finditer(pattern, text))
        if matches:
            return form.format(*(_listed(group) for group in matches[-1].groups()))
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def _listed(text: str) -> str:
    """Returns numbers of processes in order; other text as it is."""
    words = text.replace(",", " ").split()
    numbers = sorted(int(word) for word in words if word.isdigit())
    return ", ".join(map(str, numbers)) if len(numbers) == len(words) else " ".join(text.split())


def _gathering(config: Any, workdir: Place, limits: Limits) -> Gathering:
    chosen = config.distributed
    if not chosen.address.rpartition(":")[2].isdigit() or chosen.process_id >= chosen.num_processes:
        raise ConfigError(
            f"config.distributed.address is {chosen.address!r} and process_id {chosen.process_id} "
            f"of {chosen.num_processes}; kind 'coordinator' needs host:port of process 0, and a "
            "process_id below num_processes"
        )
    return Gathering(
        workdir,
        index=chosen.process_id,
        count=chosen.num_processes,
        address=chosen.address,
        timeout_s=chosen.timeout_s,
        rejoin_s=limits.rejoin_s,
    )


class _Supervisor:
    """The attempts of one host."""

    def __init__(
        self,
        command: Sequence[str],
        config: Any,
        workdir: Place,
        limits: Limits,
        hosts: Gathering | None,
        signals: _Signals,
    ) -> None:
        self._command, self._config, self._workdir = list(command), config, workdir
        self._limits, self._hosts, self._signals = limits, hosts, signals
        self._launch = uuid.uuid4().hex[:12]

    def run(self) -> int:
        """Returns the exit status of the supervisor."""
        before = None  # cause and newest checkpoint of the attempt before
        status = 0
        for number in range(1, self._limits.restarts + 2):
            plan = self._hosts.gather(self._fitting, self._signals.caught) if self._hosts else None
            if self._hosts and plan is None:
                if self._signals.caught():
                    return self._signals.status()
                _log.info("the run is complete; the other hosts have finished it")
                return 0
            status, cause = self._attempt(number, plan)
            saved = run_files.newest_step(self._workdir)
            if status == 0:
                if self._hosts:
                    self._hosts.complete()
                return 0
            if self._signals.caught():
                return self._signals.status()
            if status in _USAGE:
                return status
            if (cause, saved) == before and cause != journal.STOPPED:
                _log.error("twice the same, and no checkpoint between: %s", cause)
                return _shell(status)
            before = cause, saved
            if number <= self._limits.restarts:
                _log.info("starting again: restart %d of %d", number, self._limits.restarts)
                self._let_the_others_end(status)
                if self._signals.caught():
                    return self._signals.status()
        _log.error("the last of %d restarts has ended as well", self._limits.restarts)
        return _shell(status)

    def _let_the_others_end(self, status: int) -> None:
        """Waits until the processes of this attempt have ended on all hosts, where none says so."""
        chosen = self._config.distributed
        if self._hosts or chosen.kind == "none" or status == journal.RESUME:
            return
        # A new process would meet the coordinator of the old attempt, and fail with it.
        until = time.monotonic() + chosen.heartbeat_s
        while time.monotonic() < until and not self._signals.caught():
            time.sleep(_POLL_S)

    def _fitting(self, most: int) -> int:
        """Returns the number of hosts that can train, of those that are left."""
        tried = journal.attempts(self._workdir)
        devices = tried[-1].devices if tried else None
        return processes_that_fit(self._config, most, devices=devices)

    def _attempt(self, number: int, plan: Plan | None) -> tuple[int, str]:
        """Runs one attempt; returns the status of this host's process, and why it ended."""
        token = f"{self._launch}.{number}"
        began, first = time.time(), run_files.newest_step(self._workdir)
        if plan:
            _log.info("attempt %d: hosts %s", plan.attempt, ", ".join(map(str, plan.members)))
        status, cause = self._watch(self._flags(plan), token, plan)
        changes = {"first": first, "saved": run_files.newest_step(self._workdir), "status": status}
        attempt = journal.finish(
            self._workdir, token, began=began, ended=time.time(), cause=cause, **changes
        )
        took = duration(time.time() - began)
        _log.info("attempt ended after %s, saved up to step %d%s", took, changes["saved"],
                  f": {cause}" if cause else "")  # fmt: skip
        if attempt:
            self._log_goodput()
        return status, cause

    def _log_goodput(self) -> None:
        run = journal.over_restarts(
            journal.attempts(self._workdir), run_files.metrics(self._workdir)
        )
        _log.info(
            "goodput over %d attempts: %.1f %% of %s, of which %s between attempts",
            run["attempts"],
            100 * run["goodput"],
            duration(run["seconds"]),
            duration(run["idle_s"]),
        )

    def _flags(self, plan: Plan | None) -> list[str]:
        """Returns the flags that place this host's process in its attempt."""
        if plan is None or self._hosts is None:
            return []
        rank = plan.members.index(self._config.distributed.process_id)
        places = {
            "address": plan.coordinator,
            "num_processes": len(plan.members),
            "process_id": rank,
        }
        flags = [f"--config.distributed.{name}={value}" for name, value in places.items()]
        # All members wait, so the attempt that held the workdir has ended, or is cut off and ends.
        return [*flags, *(["--take_over"] if plan.attempt > 1 else [])]

    def _watch(self, flags: list[str], token: str, plan: Plan | None) -> tuple[int, str]:
        """Starts the process and waits for its end."""
        tail: deque[str] = deque(maxlen=_TAIL)
        lost_since: float | None = None
        ended = ""
        # A process group of its own: Ctrl-C in a terminal reaches it through the supervisor alone.
        process = subprocess.Popen(
            [*self._command, *flags],
            env=os.environ | {journal.TOKEN: token},
            stderr=subprocess.PIPE,
            process_group=0,
        )
        with self._signals.to(process), _copied(process.stderr, tail):
            looked = time.monotonic()
            while process.poll() is None:
                time.sleep(_POLL_S)
                if plan is None or self._hosts is None or time.monotonic() - looked < _LOOK_S:
                    continue
                looked = time.monotonic()
                lost = self._hosts.lost(plan)
                lost_since = (lost_since or looked) if lost else None
                grace = self._config.distributed.heartbeat_s + _GRACE_S
                if lost_since and looked - lost_since > grace:
                    ended = f"no end {grace:.0f} s after hosts {lost} were gone"
                    process.kill()
        status = process.wait()
        stopped = status in (journal.RESUME, STOPPED, 128 + signal.SIGTERM)
        cause = journal.STOPPED if stopped else ended or cause_of(list(tail), status)
        return status, "" if status == 0 else cause


def _shell(status: int) -> int:
    """Returns the exit status as shells have it: 128 and the signal that ended a process."""
    return status if status >= 0 else 128 - status


class _Signals(contextlib.ExitStack):
    """SIGINT and SIGTERM of a supervisor, which its process gets too. A context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._first: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.enter_context(handled(self._catch))
        return self

    def caught(self) -> bool:
        """Returns True once a signal has come."""
        return self._first is not None

    def status(self) -> int:
        """Returns the exit status for the signal that came."""
        return STOPPED if self._first == signal.SIGINT else journal.RESUME

    @contextlib.contextmanager
    def to(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Hands signals on to a process while it runs."""
        self._process = process
        try:
            if self._first is not None:  # it came while the process was being started
                process.send_signal(self._first)
            yield
        finally:
            self._process = None

    def _catch(self, number: int, _: FrameType | None) -> None:
        if self._first is None:
            self._first = number
        if self._process is not None:
            self._process.send_signal(number)


@contextlib.contextmanager
def _copied(source: IO[bytes] | None, tail: deque[str]) -> Iterator[None]:
    """Copies what a process prints to stderr, and keeps its last lines."""

    def copy() -> None:
        for line in source or ():
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            tail.append(line.decode(errors="replace"))

    thread = threading.Thread(target=copy, name="stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(_COPY_S)
