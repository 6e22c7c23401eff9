"""Reads that do not end: named on stderr, and the process ended, after a limit.

A damaged file can make a library's C code walk for ever, with Python's lock in its hands. Nothing
inside the process can end that, so a small process beside it (data/stall_watch.py) is told of the
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
_LONGEST = 400  # bytes of a name: a line is written at once, so that threads do not mix theirs
_numbers = itertools.count()
_watch: tuple[int, subprocess.Popen[bytes]] | None = None  # of which process, and the watcher


def end_reads_after(limit_s: float) -> None:
    """Starts to watch this process; 0 ends the watching.

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
    """Watches a read, where watching was asked for; ``name`` says what is read."""
    if _watch is None or _watch[0] != os.getpid() or _watch[1].stdin is None:
        yield
        return
    number, out = next(_numbers), _watch[1].stdin.fileno()
    line = name.replace("\n", " ").encode(errors="replace")[-_LONGEST:]
    _tell(out, b"+%d %s\n" % (number, line))
    try:
        yield
    finally:
        _tell(out, b"-%d\n" % number)


def _tell(out: int, line: bytes) -> None:
    with contextlib.suppress(OSError):  # the watcher is gone; reading goes on without it
        os.write(out, line)
