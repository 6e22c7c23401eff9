"""What a terminal should not see: libraries that report at length on what goes right."""

from __future__ import annotations

import logging

_CHATTY = ("absl", "jax", "orbax")


def quiet_libraries() -> None:
    """Lets warnings and errors of chatty libraries through, nothing else."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
