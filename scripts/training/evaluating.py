"""One run of scripts.evaluate beside a training, in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final

from eval.files import FileError
from eval.runs.journal import JOURNAL, finished_episodes
from eval.runs.receipt import read_receipt
from eval.runs.selection import NoScoreError, Score, score_of

LOG: Final = "evaluate.log"
_LOCK: Final = "process.lock"  # held by the process as long as it lives; its id is inside
_FAILED: Final = "failed.txt"  # reason of the last attempt, which is not resumed but made again
_NICENESS: Final = 10  # the training comes first
_PATIENCE_S: Final = 10.0  # for the process to stop by itself
_MOST: Final = 500  # characters of a reason


class Evaluating:
    """A process that evaluates a checkpoint.

    A training that was killed and resumed finds the process that outlived it, and waits for its
    result instead of starting a second one.

    Args:
        command: of the process.
        out: its folder, which keeps finished episodes for the next attempt.
        environment: of the process.
        limit_s: seconds after which it is ended; 0 for no limit.

    Attributes:
        adopted: True where an earlier run of the training has started it.
        began: by the monotonic clock.
    """

    def __init__(
        self,
        command: Sequence[str],
        out: pathlib.Path,
        *,
        environment: Mapping[str, str],
        limit_s: float,
    ) -> None:
        self.began = time.monotonic()
        self._out, self._limit_s = out, limit_s
        self._over_limit = False
        self._process: subprocess.Popen[bytes] | None = None
        out.mkdir(parents=True, exist_ok=True)
        with (out / _LOCK).open("a+") as lock:
            self.adopted = not _try_lock(lock.fileno())
            if not self.adopted:
                self._process = self._start(command, environment, lock.fileno())
                lock.truncate(0)
                lock.write(str(self._process.pid))

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], lock: int
    ) -> subprocess.Popen[bytes]:
        # A broken set-up is in the journal as failed episodes: they are forgotten.
        failed = self._out / _FAILED
        again = ["--restart"] if failed.is_file() else []
        failed.unlink(missing_ok=True)
        with (self._out / LOG).open("wb") as log:
            process = subprocess.Popen(
                [*command, *again],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C reaches the training, which ends this process
            )
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        return process

    @property
    def ended(self) -> bool:
        """True where the process has ended; ends it at the limit."""
        if self._alive() and self._limit_s and time.monotonic() - self.began > self._limit_s:
            self._over_limit = True
            self.stop()
        return not self._alive()

    @property
    def progress(self) -> tuple[int, int]:
        """Episodes finished so far and successes among them."""
        return finished_episodes(self._out / JOURNAL)

    def score(self) -> Score:
        """Returns the score after the end.

        Raises:
            NoScoreError: there is none; the reason is kept beside the log.
        """
        try:
            return self._score()
        except NoScoreError as error:
            (self._out / _FAILED).write_text(f"{error}\n")
            raise

    def _score(self) -> Score:
        if self._over_limit:
            raise NoScoreError(f"it was ended after {self._limit_s:g} s (config.rollouts.limit_s)")
        if self._process is not None and self._process.returncode:
            raise NoScoreError(self._reason())
        try:
            return score_of(read_receipt(self._out))
        except FileError as error:
            raise NoScoreError(self._reason() if self.adopted else str(error)) from error

    def stop(self) -> None:
        """Ends the process; its finished episodes stay."""
        deadline = time.monotonic() + _PATIENCE_S
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, ValueError):
                if self._alive():
                    os.kill(int((self._out / _LOCK).read_text()), number)
            while self._alive() and (time.monotonic() < deadline or number == signal.SIGKILL):
                time.sleep(0.05)

    def _alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        with (self._out / _LOCK).open("a") as lock:
            return not _try_lock(lock.fileno())

    def _reason(self) -> str:
        """Returns the error that the process ended with."""
        said = (self._out / LOG).read_text("utf-8", "replace")
        error = re.search(r"^error: (.*)", said, re.MULTILINE | re.DOTALL)
        if error:
            return " ".join(error[1].split())[:_MOST]
        status = self._process.returncode if self._process else "unknown"
        return f"it ended with status {status}, see {self._out / LOG}"


def _try_lock(descriptor: int) -> bool:
    """Locks an open file, if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
