"""The hosts of a supervised run agree on who takes part in its next attempt.

Each supervisor states itself in ``W/restarts/host_I.json`` and rewrites that file as a sign of
life; nobody writes another's file. While it waits it also listens on a port. The lowest host that
waits leads: when no other is missing any more, it connects to each, and writes into its own file
the members that it reached. A host that is cut off from all others, though they show life in the
workdir, leaves the lead to the next; so two parts of a divided network never both begin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final

from eval.files import FileError, fields, integer, listing, parse_json
from scripts.places import files
from scripts.restarts.journal import FOLDER
from xvla_jax.buckets import Place, in_bucket
from xvla_jax.errors import DistributedError

WAITING: Final = "waiting"
RUNNING: Final = "running"
LEADING: Final = "leading"  # waits, and is about to plan the next attempt
CUT_OFF: Final = "cut off"  # waits, and reaches none of the others
LEFT: Final = "left"  # ended by a signal or an error of its own
DONE: Final = "done"  # the run is complete
BEAT_S: Final = 1.0
BUCKET_BEAT_S: Final = 5.0  # a store takes about one write of an object a second
_POLL_S: Final = 0.2
_REACH_S: Final = 10.0  # for a connection: two lost packets cost 3 s
_AGAIN_S: Final = 5.0  # between two tries of a host that was cut off
_SIZE: Final = 2048  # bytes of a host's file, always: a file that grows could fail on a full disk
_FORM: Final = fields(
    index=integer(0, 2**20),
    name={"type": "string"},
    address={"type": "string"},
    port=integer(0, 65535),
    state={"enum": [WAITING, RUNNING, LEADING, CUT_OFF, LEFT, DONE]},
    attempt=integer(0, 2**31),
    members=listing(integer(0, 2**20)),
    coordinator={"type": "string"},
    beat=integer(0, 2**53),
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Host:
    """Statement of a supervisor about itself.

    Attributes:
        index: of the host, ``config.distributed.process_id``.
        name: of the machine.
        address: by which the others reach it.
        port: that it listens on while it waits.
        state: one of the six above.
        attempt: the newest one that it took part in; 0 before the first.
        members: of the attempt, in the order of their processes.
        coordinator: host:port of the attempt's process 0.
        beat: grows while the supervisor lives.
    """

    index: int
    name: str
    address: str
    port: int = 0
    state: str = WAITING
    attempt: int = 0
    members: tuple[int, ...] = ()
    coordinator: str = ""
    beat: int = 0


_NAMES: Final = tuple(field.name for field in dataclasses.fields(Host))


@dataclasses.dataclass(frozen=True)
class Plan:
    """An attempt as its leader planned it.

    Attributes:
        attempt: number of the attempt, from 1.
        members: indices of the hosts, in the order of their processes.
        coordinator: host:port of process 0.
    """

    attempt: int
    members: tuple[int, ...]
    coordinator: str


class Gathering:
    """One host among those of a run. A context manager, which shows life while it is open."""

    def __init__(
        self,
        workdir: Place,
        *,
        index: int,
        count: int,
        address: str,
        timeout_s: float,
        rejoin_s: float,
        beat_s: float | None = None,
    ) -> None:
        """Writes nothing before the ``with`` block.

        Args:
            workdir: which all hosts share.
            index: of this host, from 0.
            count: of all hosts.
            address: host:port of host 0; the port is used on whichever host leads.
            timeout_s: limit for all hosts to come to the first attempt, and of a wait in vain.
            rejoin_s: without a sign of life for so long, a host is left out.
            beat_s: seconds between two signs of life; None takes `BEAT_S`, or `BUCKET_BEAT_S`.
        """
        self._folder = workdir / FOLDER
        self._index, self._count = index, count
        self._first_host, _, port = address.rpartition(":")
        self._port = int(port)
        self._timeout_s, self._rejoin_s = timeout_s, rejoin_s
        self._beat_s = beat_s or (BUCKET_BEAT_S if in_bucket(workdir) else BEAT_S)
        self._poll_s = min(_POLL_S, self._beat_s) if beat_s or not in_bucket(workdir) else BEAT_S
        self._settle_s = 2 * max(self._beat_s, self._poll_s)
        self._me = Host(index, socket.gethostname(), "")
        self._listener: socket.socket | None = None
        self._seen: dict[int, tuple[Host, float]] = {}  # with the time of the last change
        self._alive: set[int] = set()  # those that have changed since this host looks
        self._plans: dict[int, Host] = {}  # those whose newest attempt began meanwhile
        self._is_open = False
        self._since = time.monotonic()
        self._tried = -math.inf
        self._lock = threading.Lock()  # of `_me`, its file and the listener
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def __enter__(self) -> Gathering:
        """Begins to show life."""
        if not in_bucket(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._since = time.monotonic()
        self._look()  # what lies there may be of hosts that have ended
        self._is_open = True
        self._state()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """States that this host has left, unless the run is complete."""
        self._ended.set()
        self._thread.join()
        if self._me.state != DONE:
            self._state(state=LEFT)
        self._close()

    def gather(self, fits: Callable[[int], int], stopped: Callable[[], bool]) -> Plan | None:
        """Waits for the next attempt of which this host is a member.

        Args:
            fits: number of hosts that are left -> number that can train the batch, 0 for none.
            stopped: returns True to wait no longer.

        Returns:
            The plan; None where the run is complete, or ``stopped`` says so.

        Raises:
            DistributedError: the limit has passed; the hosts that are missing are named.
        """
        self._state(state=WAITING)
        self._tried = -math.inf
        waits_since = time.monotonic()
        while not stopped():
            self._look()
            others = self._others()
            if any(host.state == DONE for host in others.values()):
                return None
            plan = self._planned() or self._lead(others, fits)
            if plan:
                self._close()
                self._state(state=RUNNING, **dataclasses.asdict(plan))
                return plan
            if any(host.state == RUNNING and not self._silent(i) for i, host in others.items()):
                waits_since = time.monotonic()  # a spare host waits as long as the others train
            if time.monotonic() - waits_since > self._timeout_s:
                raise DistributedError(self._in_vain(others, fits))
            time.sleep(self._poll_s)
        return None

    def lost(self, plan: Plan) -> list[int]:
        """Returns the members of a running attempt that do not take part in it any more."""
        self._look()
        lost = []
        for index in plan.members:
            host, _ = self._seen.get(index, (None, 0.0))
            gone = host is None or (host.state, host.attempt) != (RUNNING, plan.attempt)
            complete = host is not None and host.state == DONE
            if index != self._index and not complete and (gone or self._silent(index)):
                lost.append(index)
        return lost

    def complete(self) -> None:
        """States that the run is complete."""
        self._state(state=DONE)

    def _planned(self) -> Plan | None:
        """Returns the plan of a leader that counts on this host."""
        for _, host in sorted(self._plans.items()):
            if host.attempt > self._me.attempt and self._index in host.members:
                return Plan(host.attempt, host.members, host.coordinator)
        return None

    def _lead(self, others: Mapping[int, Host], fits: Callable[[int], int]) -> Plan | None:
        """Plans the next attempt, if that is for this host to do and no other is missing."""
        if not self._may_lead(others) or time.monotonic() - self._tried < _AGAIN_S:
            return None
        self._tried = time.monotonic()
        if self._me.state == CUT_OFF:
            if self._reached(_waiting(others)):  # the way of all others from here on
                self._state(state=WAITING)
                self._tried = -math.inf
            return None
        # First the claim, which all see before it is used: so of two that lead at once, as when one
        # is connected again, only one does.
        self._state(state=LEADING)
        time.sleep(self._settle_s)
        self._look()
        others = self._others()
        plan = self._planned_by(others, fits) if self._may_lead(others) else None
        if plan is None and self._me.state == LEADING:
            self._state(state=WAITING)
        return plan

    def _may_lead(self, others: Mapping[int, Host]) -> bool:
        """Returns True where no lower host waits and no other is missing or in an attempt."""
        if min((*_waiting(others), self._index)) < self._index:
            return False
        rivals = {i for i, host in others.items() if host.state == LEADING}
        if self._me.state == LEADING:  # of two claims the lower one holds
            rivals = {i for i in rivals if i < self._index}
        away = set(range(self._count)) - {self._index, *_waiting(others)}
        # Of hosts that are neither waiting nor known to have left, each is waited for until it has
        # been silent for long; to the first attempt all have to come.
        expected = {
            i
            for i in away
            if not self._silent(i)
            and (i not in others or others[i].state not in (LEFT, CUT_OFF, LEADING))
        }
        return not rivals and not expected and not (away and self._newest(others) == 0)

    def _newest(self, others: Mapping[int, Host]) -> int:
        return max(host.attempt for host in (*others.values(), self._me))

    def _planned_by(self, others: Mapping[int, Host], fits: Callable[[int], int]) -> Plan | None:
        """Returns the attempt of the hosts that this one reaches, if it may lead them."""
        waiting, newest = _waiting(others), self._newest(others)
        reached = self._reached(waiting)
        if waiting and not reached:
            _log.warning("host %d reaches none of hosts %s", self._index, _listed(waiting))
            self._state(state=CUT_OFF)
            return None
        number = fits(1 + len(reached))
        if not number or (newest == 0 and len(reached) < len(waiting)):
            return None
        members = (self._index, *reached)[:number]
        return Plan(newest + 1, members, f"{self._me.address}:{self._port}")

    def _reached(self, hosts: Mapping[int, Host]) -> list[int]:
        """Returns the hosts that answer, in order."""

        def answers(index: int) -> bool:
            address = hosts[index].address, hosts[index].port
            try:
                socket.create_connection(address, timeout=_REACH_S).close()
            except OSError:
                return False
            return True

        with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
            return [i for i, there in zip(hosts, pool.map(answers, hosts), strict=True) if there]

    def _others(self) -> dict[int, Host]:
        """Returns the other hosts that show life."""
        return {i: self._seen[i][0] for i in sorted(self._alive)}

    def _silent(self, index: int) -> bool:
        """Returns True where a host has shown no life for long."""
        _, changed = self._seen.get(index, (None, self._since))
        return time.monotonic() - max(changed, self._since) > self._rejoin_s

    def _look(self) -> None:
        """Reads the files of the other hosts."""
        for index in range(self._count):
            host = None if index == self._index else _read(self._path(index))
            if host is None:
                continue
            before, _ = self._seen.get(index, (None, 0.0))
            if host == before:
                if self._silent(index):
                    self._alive.discard(index)
                continue
            self._seen[index] = host, time.monotonic()
            if self._is_open:
                self._alive.add(index)
                was = before and (before.state, before.attempt)
                if host.state == RUNNING and was != (RUNNING, host.attempt):
                    self._plans[index] = host

    def _in_vain(self, others: Mapping[int, Host], fits: Callable[[int], int]) -> str:
        states = {i: host.state for i, host in others.items()}
        listed = ", ".join(
            f"{i} {self._me.state if i == self._index else states.get(i, 'silent')}"
            for i in range(self._count)
        )
        here = 1 + sum(state == WAITING for state in states.values())
        advice = (
            "" if fits(here) else f"; no {here} or fewer of {self._count} hosts can share the batch"
        )
        return (
            f"host {self._index} waited {self._timeout_s:.0f} s for the others in {self._folder}; "
            f"hosts: {listed}{advice}. See the log there; config.distributed.timeout_s is the limit"
        )

    def _path(self, index: int) -> Place:
        return self._folder / f"host_{index}.json"

    def _beat(self) -> None:
        """Writes signs of life."""
        while not self._ended.wait(self._beat_s):
            self._state()
            self._answer()

    def _state(self, **changes: Any) -> None:
        """Writes this host's file, with one more beat."""
        with self._lock:
            me = dataclasses.replace(self._me, **changes, beat=self._me.beat + 1)
            if me.state in (WAITING, LEADING, CUT_OFF):
                me = self._listening(me)
            self._me = me
            content = json.dumps(dataclasses.asdict(me)).encode().ljust(_SIZE - 1) + b"\n"
            try:
                files.rewrite(self._path(self._index), content)
            except OSError as error:
                _log.warning("%s: no sign of life could be written: %s", self._folder, error)

    def _listening(self, me: Host) -> Host:
        """Returns this host with the address that it is found at, once it is known."""
        if self._listener is not None:
            return me
        try:
            address = self._first_host if me.index == 0 else _towards(self._first_host, self._port)
            listener = _listen(address, self._port)
        except OSError as error:  # the name of host 0 may not be known yet
            _log.info("%s: %s; trying again", self._first_host, error)
            return me
        self._listener = listener
        return dataclasses.replace(me, address=address, port=listener.getsockname()[1])

    def _answer(self) -> None:
        """Takes the connections of a leader off the queue of the port."""
        with self._lock, contextlib.suppress(OSError):
            while self._listener is not None:
                self._listener.accept()[0].close()

    def _close(self) -> None:
        """Frees the port for the training."""
        with self._lock:
            if self._listener is not None:
                self._listener.close()
                self._listener = None


def _waiting(others: Mapping[int, Host]) -> dict[int, Host]:
    return {index: host for index, host in others.items() if host.state == WAITING}


def _read(path: Place) -> Host | None:
    """Returns the host in a file; None where there is none, or while it is written."""
    try:
        record = parse_json(files.read(path) or b"", _FORM, str(path))
    except (FileError, OSError):
        return None
    known: dict[str, Any] = {name: record[name] for name in _NAMES}
    known["members"] = tuple(known["members"])
    return Host(**known)


def _towards(host: str, port: int) -> str:
    """Returns the address of this machine on the way to a host; nothing is sent."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return probe.getsockname()[0]


def _listen(address: str, port: int) -> socket.socket:
    """Listens on the run's port, which a firewall lets through; on any where that is taken."""
    family, *_, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    # Several hosts on one machine, as in tests, must leave the port to the coordinator.
    shared = str(target[0]).startswith("127.") or target[0] == "::1"
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((target[0], 0 if shared else port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _listed(numbers: Mapping[int, Any]) -> str:
    return ", ".join(map(str, sorted(numbers)))
