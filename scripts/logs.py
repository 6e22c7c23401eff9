"""Keeps a terminal free of what libraries report at length though it goes right or is raised."""

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
