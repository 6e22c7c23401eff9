"""What a terminal should not see: libraries that report at length on what goes right."""

from __future__ import annotations

import logging
import sys

_CHATTY = ("absl", "jax", "orbax")


def quiet_libraries() -> None:
    """Lets warnings and errors of chatty libraries through, nothing else.

    What Orbax's threads log and print of an exception is left out: it is raised to us as well.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in (*logging.getLogger().handlers, *logging.getLogger("absl").handlers):
        handler.addFilter(_is_told_once)
    sys.unraisablehook = _report


def _is_told_once(record: logging.LogRecord) -> bool:
    return "_SignalingThread.run() raised an exception" not in record.getMessage()


def _report(unraisable: sys.UnraisableHookArgs) -> None:
    """As Python does; writes of Orbax that end after their event loop are no news."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
