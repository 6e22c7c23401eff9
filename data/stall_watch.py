"""Ends a process whose read takes too long; data/stalls.py starts it with the process's id.

A line "+7 NAME" on stdin begins read 7, "-7" ends it. It needs the standard library alone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time


def watch(pid: int, limit_s: float) -> None:
    """Reads stdin until it is closed; ends process `pid` when a read takes too long."""
    begun: dict[bytes, tuple[float, bytes]] = {}
    rest = b""
    while True:
        oldest = min((moment for moment, _ in begun.values()), default=time.monotonic())
        wait = max(0.0, oldest + limit_s - time.monotonic()) if begun else None
        if select.select([0], [], [], wait)[0]:
            received = os.read(0, 1 << 16)
            if not received:
                return
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                number, _, name = line[1:].partition(b" ")
                if line.startswith(b"+"):
                    begun[number] = (time.monotonic(), name)
                else:
                    begun.pop(number, None)
            continue
        late = min(begun.values(), default=None)
        if late is not None and late[0] + limit_s <= time.monotonic():
            message = (
                f"error: {late[1].decode(errors='replace')}: reading it has not ended for "
                f"{limit_s:g} s, so the run is ended; take the file away, or raise read_limit_s\n"
            )
            os.write(2, message.encode())
            os.kill(pid, signal.SIGKILL)
            return


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the process that it watches
    watch(int(sys.argv[1]), float(sys.argv[2]))
