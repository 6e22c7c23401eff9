"""One run for each workdir: a file names the holder, who rewrites it as a sign of life.

The file is created exclusively, which local disks, NFS and buckets can do; flock would end at the
host. A holder on this host is looked up by its process id. A holder on another host counts as dead
when its file has not changed for `STALE_S`, by the clock of the process that waits: clocks of two
hosts are never compared.
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
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

from xvla_jax import buckets
from xvla_jax.errors import TrainingError

LOCK_NAME: Final = "run.lock"
BEAT_S: Final = 15.0  # between two signs of life
STALE_S: Final = 75.0  # without one, a holder on another host is dead
_SIZE: Final = 1024  # bytes of the file, always, so that a full disk does not stop the beat
_POLL_S: Final = 1.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a workdir.

    Attributes:
        host: name of its machine.
        pid: of the process.
        place: boot and pid namespace of the host; within them ``pid`` means this process.
        born: start of the process, in ticks since the boot, since process ids are reused.
        token: unique to this hold.
        started: time for people, ISO 8601.
        job: id of the SLURM job, empty elsewhere.
        restarts: times that SLURM has requeued the job so far.
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
        """Returns the holder that this process would be."""
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
        """Returns True if the process has ended, None if ``ours`` cannot know from here."""
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
        flag: str = "--workdir",
        take_over: bool | None = False,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
    ) -> None:
        """Takes nothing before the ``with`` block.

        Args:
            workdir: an existing folder on a disk of this host, or any in a bucket.
            flag: that gave it, for messages.
            take_over: do not wait for a sign of life of a holder on another host. If it does live,
                its run ends itself when it finds another holder in the file. None: the command has
                no such flag.
            beat_s: seconds between two signs of life.
            stale_s: seconds without one, after which a holder on another host is dead.

        Raises:
            ConfigError: the path has another scheme than that of buckets.
        """
        self.path = buckets.place_of(workdir, flag=flag) / LOCK_NAME
        in_bucket = buckets.in_bucket(self.path)
        self._file = _ObjectInBucket(self.path) if in_bucket else _FileOnDisk(self.path)
        self._flag, self._take_over = flag, take_over
        self._beat_s, self._stale_s = beat_s, stale_s
        self._me = Holder.me()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)

    def __enter__(self) -> WorkdirLock:
        """Takes the workdir, from a dead holder if there is one.

        Raises:
            TrainingError: another run holds it; host and process are named.
            OSError: the file cannot be written.
        """
        is_held = False
        try:
            # In a loop: after the removal of a dead holder's file another process may be faster.
            while not self._file.create(_packed(self._me)):
                dead = self._watch()
                if dead is not None:
                    self._remove(dead)
            self._thread.start()
            is_held = True
        finally:
            # A signal may come between the file and the end of this method, which none exits then.
            if not is_held:
                self._release()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Releases the workdir."""
        self._release()

    def _release(self) -> None:
        """Ends the thread and removes the file, if it is ours."""
        # The thread first, or it would write the file again.
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            holder = self._read()
            if holder is not None and holder.token == self._me.token:
                self._file.remove()

    def _read(self) -> Holder | None:
        """Returns the holder in the file; None if there is no file."""
        content = self._file.read()
        return None if content is None else _unpacked(content)

    def _watch(self) -> Holder | None:
        """Waits until the holder is known to be dead, and returns it; None if it has left.

        Raises:
            TrainingError: it lives.
        """
        first, since = self._read(), time.monotonic()
        if first is not None and first.is_dead(self._me) is None and not self._take_over:
            hint = " (--take_over: no wait)" if self._take_over is not None else ""
            _log.info(
                "%s is held by %s; waiting up to %.0f s for a sign of life%s",
                self.path.parent,
                first,
                self._stale_s,
                hint,
            )
        while (holder := self._read()) is not None:
            # Refused: known to live, or a sign of life since the first look. Taken over: known to
            # be dead, given up by the flag, or silent for long enough.
            dead = holder.is_dead(self._me)
            beats = holder != first and holder.token  # a file without a token is being written
            if dead is False or (dead is None and beats):
                raise TrainingError(
                    f"{self.path.parent} is in use by {holder}. Use another {self._flag}, or end "
                    "that run"
                )
            if holder != first:  # another process took it and has not written yet: wait for that
                first, since = holder, time.monotonic()
            if dead or self._take_over or time.monotonic() - since > self._stale_s:
                return holder
            time.sleep(min(_POLL_S, self._beat_s))
        return None

    def _remove(self, dead: Holder) -> None:
        """Removes the file of a dead holder, unless another process took the workdir meanwhile."""
        if self._file.remove_if(lambda content: _unpacked(content).token == dead.token):
            _log.warning("%s is taken over from %s", self.path.parent, dead)

    def _beat(self) -> None:
        """Writes signs of life; ends the process when the workdir has been taken from it."""
        beat = 0
        while not self._done.wait(self._beat_s):
            beat += 1
            content = _packed(dataclasses.replace(self._me, beat=beat))
            try:
                holder = self._read()
                if holder is None and self._file.create(content):  # it was removed by hand
                    continue
                if holder is not None and holder.token in (self._me.token, ""):
                    self._file.rewrite(content)
                    continue
            except OSError as error:
                _log.warning("%s: no sign of life could be written: %s", self.path, error)
                continue
            sys.stderr.write(f"error: {self.path.parent} was taken over by {self._read()}\n")
            sys.stderr.flush()
            os._exit(1)  # at once: nothing more may be written there


class _FileOnDisk:
    """The file of a lock, on a disk that several hosts may share."""

    def __init__(self, path: buckets.Place) -> None:
        self._path = pathlib.Path(path)

    def create(self, content: bytes) -> bool:
        """Creates the file; returns False if there is one."""
        # O_EXCL is what decides between two processes; everything else here is bookkeeping.
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        is_written = False
        try:
            os.write(handle, content)
            os.fsync(handle)
            is_written = True
        finally:
            os.close(handle)
            if not is_written:
                with contextlib.suppress(OSError):
                    self._path.unlink()  # an empty file names no holder
        return True

    def read(self) -> bytes | None:
        """Returns the content; None if there is no file."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def rewrite(self, content: bytes) -> None:
        """Writes the content over that of the same size."""
        # In place and of one size: a file that is replaced or grows could fail on a full disk.
        with self._path.open("r+b") as file:
            file.write(content)

    def remove_if(self, is_dead: Callable[[bytes], bool]) -> bool:
        """Removes the file of a dead holder; returns False where it is another's by now."""
        # Renamed before it is read: of several that find the holder dead, only one gets the file.
        aside = self._path.with_name(f"{LOCK_NAME}.{uuid.uuid4().hex}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return False
        content = aside.read_bytes()
        dead = is_dead(content)
        if not dead:
            self.create(content)  # of a process that was faster: put it back
        aside.unlink()
        return dead

    def remove(self) -> None:
        """Removes the file."""
        self._path.unlink()


class _ObjectInBucket:
    """The same in a bucket, by the version of the object that was read last."""

    def __init__(self, path: buckets.Place) -> None:
        self._path, self._version = path, buckets.ABSENT

    def create(self, content: bytes) -> bool:
        """Creates the object; returns False if there is one."""
        return self._write(content, buckets.ABSENT)

    def read(self) -> bytes | None:
        """Returns the content; None if there is no object."""
        content, self._version = buckets.read(self._path)
        return content if self._version != buckets.ABSENT else None

    def rewrite(self, content: bytes) -> None:
        """Writes the content over what was read; another's stays, and is found at the next read."""
        self._write(content, self._version)

    def remove_if(self, is_dead: Callable[[bytes], bool]) -> bool:
        """Removes the object of a dead holder; returns False where it is another's by now."""
        content = self.read()
        if content is None or not is_dead(content):
            return False
        self.remove()  # not a version that came since
        return True

    def remove(self) -> None:
        """Removes the version that was read."""
        buckets.remove(self._path, version=self._version)

    def _write(self, content: bytes, replacing: int) -> bool:
        version = buckets.write(self._path, content, replacing=replacing)
        self._version = version or self._version
        return version is not None


def _packed(holder: Holder) -> bytes:
    """Returns the content of the file, always of the same size."""
    return json.dumps(dataclasses.asdict(holder)).encode().ljust(_SIZE - 1) + b"\n"


def _unpacked(content: bytes) -> Holder:
    """Returns the holder in a file's content; an unknown one if it names none."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):  # empty as yet, or not one of ours
        return _UNKNOWN


def _place() -> str:
    """Returns boot and pid namespace, within which a pid means one process; empty if unknown."""
    # A container has process ids of its own, and a reboot starts them again.
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Returns the start of a process in ticks since the boot; empty if it does not live."""
    # Fields 3 (state) and 22 (start time) of proc(5); the name before them may hold spaces.
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
