"""Ends the process when a read takes longer than a limit, and names the read on stderr.

A damaged file can make a library's C code loop for ever while it holds Python's lock. Nothing
inside the process can end that, so a small process beside it (data/stall_watch.py) hears of the
begin and end of every read.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_WATCH = Path(__file__).with_name("stall_watch.py")
_LONGEST = 400  # bytes of a name: short lines are written at once, so threads do not mix theirs
_numbers = itertools.count()
_watch: tuple[int, subprocess.Popen[bytes]] | None = None  # of which process, and the watcher


def end_reads_after(limit_s: float) -> None:
    """Starts to watch this process; a limit of 0 stops it.

    Raises:
        ValueError: the limit is below 0.
    """
    global _watch
    if limit_s < 0:
        raise ValueError(f"read_limit_s is {limit_s}; it must be 0 or more seconds, 0 for none")
    if _watch is not None and _watch[0] == os.getpid() and _watch[1].stdin is not None:
        _watch[1].stdin.close()
        _watch[1].wait()
    _watch = None
    if limit_s:
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCH), str(os.getpid()), str(limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        _watch = (os.getpid(), watcher)
        atexit.register(end_reads_after, 0)


@contextlib.contextmanager
def read_of(name: str) -> Iterator[None]:
    """Watches the read `name`, where `end_reads_after` has started the watching."""
    if _watch is None or _watch[0] != os.getpid() or _watch[1].stdin is None:
        yield
        return
    number, out = next(_numbers), _watch[1].stdin.fileno()
    line = name.replace("\n", " ").encode(errors="replace")[-_LONGEST:]
    _send(out, b"+%d %s\n" % (number, line))
    try:
        yield
    finally:
        _send(out, b"-%d\n" % number)


def _send(out: int, line: bytes) -> None:
    with contextlib.suppress(OSError):  # the watcher is gone; reading continues without it
        os.write(out, line)
