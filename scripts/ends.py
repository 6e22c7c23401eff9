"""How every command ends: which errors it expects, in what words, with which status."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any, Final

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
