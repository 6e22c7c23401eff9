"""The progress bar that the scripts share: done of total, successes, rate, time to go."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a command line for `absl.app.run`; exits with one line where a field is unknown."""
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError, TypeError) as error:
        fields = [text for text in argv if text.startswith("--config.")]
        meant = [t for t in fields if any(p in str(error) for p in t.split("=")[0].split(".")[1:])]
        if not meant:
            raise
        sys.exit(
            f"error: {' '.join(meant)}: the config has no such field ({error}). "
            "configs/base.py lists the fields; the action space of a checkpoint is set by "
            "config.action_mode and config.real_action_dim"
        )


def asked_fields(holder: flags.FlagHolder[object]) -> frozenset[str]:
    """Fields of the config that were set on the command line, as ``model.depth``."""
    return frozenset(config_flags.get_override_values(flags.FLAGS[holder.name]))


STOPPED: Final = 130  # status after Ctrl-C

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def said(error: BaseException) -> str:
    """Returns an error as the one line that a command ends with."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = "; free some space, or choose another place" if error.errno in _FULL else ""
    return f"{where}{error.strerror}{advice}"


def ends_clearly(main: Callable[[Any], int | None], status: int = 1) -> Callable[[Any], int]:
    """Returns ``main`` with one line in the place of a traceback for what any command may meet.

    That is files, disks and connections, wherever they fail, and Ctrl-C. Errors of a kind are
    caught where they are known.

    Args:
        main: takes the arguments and returns the exit status.
        status: after an error.
    """

    @functools.wraps(main)
    def run(argv: Any) -> int:
        try:
            return main(argv) or 0
        except OSError as error:
            print(f"error: {said(error)}", file=sys.stderr)
            return status
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return STOPPED

    return run


class Termination:
    """Turns SIGTERM into SystemExit, so that what is half written is removed. A context manager.

    Python drops what is raised in a callback of its garbage collector, and JAX has such a callback:
    a signal that came there is raised again at the next `check`.
    """

    def __init__(self) -> None:
        """Nothing is caught before the ``with`` block."""
        self._caught = False

    def __enter__(self) -> Termination:
        """Starts to catch."""
        self._previous = signal.signal(signal.SIGTERM, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the previous handler back."""
        signal.signal(signal.SIGTERM, self._previous)

    def check(self) -> None:
        """Raises SystemExit (143, what a shell makes of the signal) if the signal has come."""
        if self._caught:
            sys.exit(143)

    def checked(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """``progress``, with a `check` before every call."""

        def check_and_tell(done: int, total: int) -> None:
            self.check()
            progress(done, total)

        return check_and_tell

    def _catch(self, *_: object) -> None:
        self._caught = True
        self.check()


_CHATTY = ("absl", "jax", "orbax")


def quiet_libraries() -> None:
    """Lets warnings and errors of chatty libraries through, nothing else.

    What Orbax's threads log and print of an exception is left out: it is raised to us as well.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in (*logging.getLogger().handlers, *logging.getLogger("absl").handlers):
        handler.addFilter(_is_news)
    sys.unraisablehook = _report


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for what Orbax's threads and writes log of an exception that they also raise.

    A write of several fails, the others are left behind with theirs, and asyncio logs each of them
    when it is collected, which is sooner or later.
    """
    message = record.getMessage()
    if record.name == "asyncio":
        return "/orbax/" not in message
    return "_SignalingThread.run() raised an exception" not in message


def _report(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints it as Python does, but not writes of Orbax that end after their event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def episode_progress(
    console: Console, description: str, total: int
) -> Iterator[Callable[[int, int, int], None]]:
    """A bar; what it yields takes (episodes done, episodes in all, successes so far)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(description, total=total, rate="")

        def show(done: int, total: int, successes: int) -> None:
            speed = progress.tasks[bar].speed
            rate = "" if speed is None else f"{60 * speed:.0f}/min"
            text = f"{done - successes} failed  {rate}"
            progress.update(bar, completed=done, total=total, rate=text)

        yield show


@contextlib.contextmanager
def _bar(
    console: Console, description: str, *counts: ProgressColumn
) -> Iterator[Callable[[int, int], None]]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(description, total=None)

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        yield show


def count_progress(
    console: Console, description: str
) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
    """A bar that counts; what it yields takes (done, in all)."""
    return _bar(console, description, MofNCompleteColumn())


def bytes_progress(
    console: Console, description: str
) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
    """A bar that counts bytes; what it yields takes (done, in all)."""
    return _bar(console, description, DownloadColumn(), TransferSpeedColumn())
