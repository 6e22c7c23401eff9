"""One run for each workdir: a file that says who has it, kept fresh while that process lives.

The file is made exclusively, which local disks, NFS and mounted buckets all can; locks of the
system (flock) end at the host. Another process on the same host is looked up by its id. On another
host a holder counts as dead when its file has not changed for `STALE_S`, by the clock of the one
that waits: clocks of two hosts are never compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Final

from xvla_jax.errors import TrainingError

LOCK_NAME: Final = "run.lock"
BEAT_S: Final = 15.0  # between two signs of life
STALE_S: Final = 75.0  # without one, a holder on another host is dead
_SIZE: Final = 1024  # bytes of the file, always, so that a full disk does not stop the beat
_POLL_S: Final = 1.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a workdir.

    Attributes:
        host: its name.
        pid: of the process.
        place: where the id means this process: boot and namespace of the host.
        born: of the process, in ticks since the boot; ids are used again.
        token: of this hold alone.
        started: for people, ISO 8601.
        job: SLURM's, empty elsewhere.
        restarts: of the job so far.
        beat: grows while the process lives.
    """

    host: str
    pid: int
    place: str
    born: str
    token: str
    started: str
    job: str = ""
    restarts: int = 0
    beat: int = 0

    @classmethod
    def me(cls, environ: Mapping[str, str] = os.environ) -> Holder:
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            place=_place(),
            born=_born(os.getpid()),
            token=uuid.uuid4().hex,
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            job=environ.get("SLURM_JOB_ID", ""),
            restarts=int(environ.get("SLURM_RESTART_COUNT", "0") or 0),
        )

    def __str__(self) -> str:
        """Host, process and time, for messages."""
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on host {self.host}{job}, since {self.started}"

    def is_dead(self, ours: Holder) -> bool | None:
        """Whether the process has ended; None where that cannot be told from here."""
        if self.job and self.job == ours.job and self.restarts < ours.restarts:
            return True  # SLURM starts a job again only when it has ended
        if self.place and self.place == ours.place:
            return _born(self.pid) != self.born
        return None


_UNKNOWN: Final = Holder("unknown", 0, "", "", "", "an unknown time")


class WorkdirLock:
    """Holds a workdir for this process. A context manager."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        take_over: bool = False,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
    ) -> None:
        """Takes nothing before the ``with`` block.

        Args:
            workdir: exists.
            take_over: take it from a holder of which nothing is known, without waiting.
            beat_s: seconds between two signs of life.
            stale_s: seconds without one, after which a holder on another host is dead.
        """
        self.path = pathlib.Path(workdir) / LOCK_NAME
        self._take_over = take_over
        self._beat_s, self._stale_s = beat_s, stale_s
        self._me = Holder.me()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)

    def __enter__(self) -> WorkdirLock:
        """Takes the workdir, from a dead holder if need be.

        Raises:
            TrainingError: another run has it; host and process are named.
            OSError: the file cannot be written.
        """
        while not self._create(_packed(self._me)):
            dead = self._watch()
            if dead is not None:
                self._remove(dead)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the workdir free."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        found = self._read()
        if found is not None and found.token == self._me.token:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _create(self, content: bytes) -> bool:
        """Makes the file; False where there is one."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(handle, content)
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                self.path.unlink()  # nobody is in an empty file
            raise
        finally:
            os.close(handle)
        return True

    def _read(self, path: pathlib.Path | None = None) -> Holder | None:
        """Who is in the file; None where there is no file."""
        try:
            return Holder(**json.loads((path or self.path).read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # empty as yet, or not one of ours
            return _UNKNOWN

    def _watch(self) -> Holder | None:
        """The holder when it is dead; None when it has gone.

        Raises:
            TrainingError: it lives.
        """
        first, since = self._read(), time.monotonic()
        if first is not None and first.is_dead(self._me) is None and not self._take_over:
            _log.info(
                "%s is held by %s; waiting up to %.0f s for a sign of life (--take_over does not)",
                self.path.parent,
                first,
                self._stale_s,
            )
        while (found := self._read()) is not None:
            dead = found.is_dead(self._me)
            if dead is False or (dead is None and found != first and found.token):
                raise TrainingError(
                    f"{self.path.parent} is in use by {found}. Use another --workdir, or end that "
                    "run"
                )
            if dead or self._take_over or time.monotonic() - since > self._stale_s:
                return found
            time.sleep(min(_POLL_S, self._beat_s))
        return None

    def _remove(self, dead: Holder) -> None:
        """Removes the file of a dead holder, unless somebody else has been faster."""
        aside = self.path.with_name(f"{LOCK_NAME}.{self._me.token}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        found = self._read(aside)
        if found is not None and found.token != dead.token:
            self._create(aside.read_bytes())  # another's, who was faster: put it back
        else:
            _log.warning("%s is taken over from %s", self.path.parent, dead)
        aside.unlink()

    def _beat(self) -> None:
        """Writes signs of life; ends the process when the workdir has been taken from it."""
        beat = 0
        while not self._done.wait(self._beat_s):
            beat += 1
            content = _packed(dataclasses.replace(self._me, beat=beat))
            try:
                found = self._read()
                if found is None and self._create(content):  # somebody has removed it by hand
                    continue
                if found is not None and found.token in (self._me.token, ""):
                    with self.path.open("r+b") as file:
                        file.write(content)
                    continue
            except OSError as error:
                _log.warning("%s: no sign of life could be written: %s", self.path, error)
                continue
            sys.stderr.write(f"error: {self.path.parent} was taken over by {self._read()}\n")
            sys.stderr.flush()
            os._exit(1)  # nothing more may be written there


def _packed(holder: Holder) -> bytes:
    """The content of the file, of one size."""
    return json.dumps(dataclasses.asdict(holder)).encode().ljust(_SIZE - 1) + b"\n"


def _place() -> str:
    """What makes a process id mean one process: boot and id namespace; empty where unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process started, in ticks since the boot; empty where it does not live."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
