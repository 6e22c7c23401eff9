"""SIGTERM as an exception that cannot get lost."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import TracebackType


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
