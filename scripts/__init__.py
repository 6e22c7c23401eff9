"""Commands, run as ``python -m scripts.NAME``; ``python -m scripts`` lists them.

The only place that imports more than one of data/, xvla_jax/ and eval/. A command is its flags and
a main; `scripts.terminal` parses and ends all of them, the rooms hold what they share.
"""

from __future__ import annotations

import sys
from types import TracebackType


def _in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints which extra is missing, without a traceback."""
    if kind.__name__ == "MissingExtraError":  # each peer has its own
        print(error, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _in_one_line
