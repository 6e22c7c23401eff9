"""Four supervised hosts of one run, what is done to them, and what the run makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from benchmarks.cuts.network import Network
from scripts.restarts import journal
from xvla_jax.training.telemetry import all_lines, read_metrics

HOSTS: Final = 4
SAVE_EVERY: Final = 6  # config.save_every: steps that may be lost; a save starts every 3
HEARTBEAT_S: Final = 10
REJOIN_S: Final = 5
_LIMIT_S: Final = 600  # for the run to train again after a fault
_PORT: Final = 8476
_POLL_S: Final = 0.1
_ROOT: Final = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Outcome:
    """Consequences of one fault.

    Attributes:
        fault: its kind.
        host: that it befell, one of those that trained; -1 for none.
        coordinator: the host that was process 0.
        lost: steps that were done again.
        resumed_s: seconds from the fault to the first new step.
        hosts: of the attempt that trained on.
        causes: that the supervisors stated.
        failure: why the run did not continue; empty if it did.
    """

    fault: str
    host: int
    coordinator: int = 0
    lost: int = 0
    resumed_s: float = 0.0
    hosts: int = 0
    causes: list[str] = dataclasses.field(default_factory=list)
    failure: str = ""


class Run:
    """A run on the hosts of a network, one supervisor on each. A context manager."""

    def __init__(
        self,
        network: Network,
        folder: pathlib.Path,
        *flags: str,
        iters: int,
        environ: Mapping[str, str],
        restarts: int = 100,
        module: str = "scripts.train",
        rejoin_s: float = REJOIN_S,
        heartbeat_s: int = HEARTBEAT_S,
    ) -> None:
        """``folder`` holds the data (``demos``), the workdir (``run``) and the logs."""
        self.network, self.folder, self.workdir = network, folder, folder / "run"
        address = f"{network.name(0)}:{_PORT}"
        chosen = {
            "kind": "coordinator",
            "address": address,
            "num_processes": HOSTS,
            "timeout_s": 120,
            "heartbeat_s": heartbeat_s,
        }
        self._command = [
            *(sys.executable, "-m", module, "--config=configs/debug.py"),
            *("--config.from_scratch=True", f"--workdir={self.workdir}"),
            *(f"--config.data.root={folder / 'demos'}", f"--config.data.lanes={HOSTS}"),
            *(f"--config.optimizer.iters={iters}", f"--config.save_every={SAVE_EVERY}"),
            *(f"--config.distributed.{name}={value}" for name, value in chosen.items()),
            *(f"--restarts={restarts}", f"--rejoin_s={rejoin_s}", *flags),
        ]
        self._environ = {**os.environ, **environ}
        self.hosts: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Run:
        """Starts all hosts."""
        for index in range(HOSTS):
            self.start(index)
        return self

    def __exit__(self, *exception: object) -> None:
        """Kills what still runs."""
        for index in list(self.hosts):
            self.lose(index)

    def start(self, index: int) -> None:
        """Starts the supervisor of a host."""
        place = f"--config.distributed.process_id={index}"
        with self.log(index).open("ab") as log:
            self.hosts[index] = subprocess.Popen(
                self.network.inside(index, [*self._command, place]),
                cwd=_ROOT,
                env=self._environ,
                stdout=log,
                stderr=log,
            )

    def log(self, index: int) -> pathlib.Path:
        """Returns the file of what a host prints."""
        return self.folder / f"host{index}.log"

    def lose(self, index: int) -> None:
        """Ends a host with all its processes, as if its power was cut."""
        supervisor = self.hosts.pop(index)
        for pid in (*_children(supervisor.pid), supervisor.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        supervisor.wait()

    def kill_process(self, index: int) -> None:
        """Kills the training process of a host; its supervisor stays."""
        for pid in _children(self.hosts[index].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def preempt(self, index: int) -> None:
        """Sends a host SIGTERM."""
        self.hosts[index].send_signal(signal.SIGTERM)

    def wait(self, happened: Callable[[], bool], limit_s: float = _LIMIT_S) -> bool:
        """Waits until something has happened; False after the limit, or when a host has failed."""
        until = time.monotonic() + limit_s
        while not happened():
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_S)
        return True

    def statuses(self) -> dict[int, int | None]:
        """Returns the exit status of each host; None while it runs."""
        return {index: host.poll() for index, host in self.hosts.items()}

    @property
    def members(self) -> tuple[int, ...]:
        """Hosts of the newest attempt."""
        files = (self.workdir / journal.FOLDER).glob("host_*.json")
        stated = [json.loads(path.read_bytes()) for path in files]
        return tuple(max(stated, key=lambda host: host["attempt"])["members"])

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of metrics, in the order written."""
        return all_lines(self.workdir)

    def causes(self) -> list[str]:
        """Returns the causes in the journal, those of complete attempts left out."""
        return [a.cause for a in journal.attempts(self.workdir) if a.cause]


def _children(pid: int) -> list[int]:
    """Process ids of a process's children, and of theirs."""
    try:
        own = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [child for text in own for child in (*_children(int(text)), int(text))]


def _cut(run: Run, host: int) -> Iterator[None]:
    run.network.cut(host)
    yield
    run.network.mend(host)


def _slow(run: Run, host: int) -> Iterator[None]:
    run.network.slow(host, loss=0.2, delay_s=0.05)
    yield
    run.network.mend(host)


def _killed(run: Run, host: int) -> Iterator[None]:
    run.kill_process(host)
    yield


def _lost(run: Run, host: int) -> Iterator[None]:
    run.lose(host)
    yield
    run.start(host)


def _preempted(run: Run, host: int) -> Iterator[None]:
    run.preempt(host)
    yield
    if host in run.hosts:
        run.hosts.pop(host).wait()
    run.start(host)


# kind -> what is done, and behind the yield how it is mended once the run trains again
FAULTS: Final[Mapping[str, Callable[[Run, int], Iterator[None]]]] = {
    "cut off": _cut,
    "slow": _slow,
    "process killed": _killed,
    "host lost": _lost,
    "preempted": _preempted,
}


def befall(run: Run, fault: str, rng: random.Random) -> Outcome:
    """Does something to a host that trains, and waits until the run has trained on."""
    outcome = Outcome(fault, -1)
    logged = len(run.lines)
    ready = logged + rng.randint(2, SAVE_EVERY)
    if not run.wait(lambda: len(run.lines) >= ready):
        outcome.failure = "did not train before the fault"
        return outcome
    time.sleep(rng.uniform(0, 0.5))
    outcome.host = host = rng.choice(run.members)
    outcome.coordinator = run.members[0]
    causes = len(run.causes())
    begun, before = time.monotonic(), run.lines[-1]
    mending = FAULTS[fault](run, host)
    next(mending)
    same_session = fault == "slow"

    def trained_on() -> bool:
        last = run.lines[-1]
        new = last["session"] != before["session"]
        return (new or same_session) and last["step"] > before["step"]

    if not run.wait(trained_on):
        outcome.failure = f"no step for {_LIMIT_S} s, statuses {run.statuses()}"
    outcome.resumed_s = time.monotonic() - begun
    attempt = journal.attempts(run.workdir)[-1]
    outcome.hosts = attempt.processes
    starts = [line for line in run.lines if line["session"] != before["session"]]
    ended = [line for line in run.lines if line["session"] == before["session"]]
    if not outcome.failure and run.lines[-1]["session"] != before["session"]:
        outcome.lost = max(int(ended[-1]["step"] - starts[-1]["session_start"]), 0)
    outcome.causes = run.causes()[causes:]
    for _ in mending:
        pass
    return outcome


def finish(run: Run, limit_s: float = _LIMIT_S) -> bool:
    """Waits until all hosts have ended; returns True if all say that the run is complete."""
    run.wait(lambda: None not in run.statuses().values(), limit_s)
    return set(run.statuses().values()) == {0}


def largest_difference(ours: pathlib.Path, theirs: pathlib.Path) -> float:
    """Returns the largest relative difference of our losses from theirs; a missing step is inf."""
    a, b = ({r["step"]: r["loss"] for r in read_metrics(run)} for run in (ours, theirs))
    if sorted(a) != list(range(1, len(a) + 1)):
        return float("inf")
    return max(abs(a[step] - b[step]) / abs(b[step]) for step in a)
