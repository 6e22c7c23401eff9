"""Thin mains, run as `python -m scripts.NAME`: here alone data, xvla_jax and eval meet."""

from __future__ import annotations

import sys
from types import TracebackType


def _in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Tells which extra is missing without a traceback: imports run before any main could."""
    if kind.__name__ == "MissingExtraError":  # each peer has its own
        print(error, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _in_one_line
