"""A program in the place of the training: steps, checkpoints and ends as a run has them, no JAX.

``python -m benchmarks.cuts.stand_in`` takes the command line of ``scripts.train --restarts``. All
processes of an attempt agree on each step through process 0. Starts take no time, so the
supervisors can be tried dozens of times in minutes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import sys
import time
from typing import Any, Final, NoReturn

from scripts.restarts import journal, run_files
from scripts.restarts.supervisor import Limits, supervise
from scripts.terminal import Command
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.errors import XVLAError

PROGRAM: Final = (sys.executable, "-m", "benchmarks.cuts.stand_in")
STEP_S: Final = 0.2

COMMAND = Command(__doc__)
_CONFIG = COMMAND.DEFINE_config("config", "Config file.")
_WORKDIR = COMMAND.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_RESTARTS = COMMAND.DEFINE_integer("restarts", 0, "Starts after the first.")
_REJOIN = COMMAND.DEFINE_float("rejoin_s", 60.0, "Seconds until a silent host is left out.")
_TAKE_OVER = COMMAND.DEFINE_bool("take_over", False, "Nothing here.")


class Peers:
    """The processes of an attempt: process 0 with a connection to each, the others with one."""

    def __init__(self, config: Any) -> None:
        """Waits for all of them."""
        chosen = config.distributed
        self.index, count, limit = chosen.process_id, chosen.num_processes, chosen.timeout_s
        host, _, port = chosen.address.rpartition(":")
        self._ends: dict[int, socket.socket] = {}
        until = time.monotonic() + limit
        if self.index == 0:
            with socket.create_server(("", int(port))) as server:
                server.settimeout(limit)
                while len(self._ends) < count - 1:
                    end, _ = server.accept()
                    self._ends[end.recv(1)[0]] = end
        else:
            while not self._ends:
                try:
                    self._ends[0] = socket.create_connection((host, int(port)), timeout=limit)
                except OSError:
                    if time.monotonic() > until:
                        fail(0)
                    time.sleep(0.1)
            self._ends[0].sendall(bytes([self.index]))
        for end in self._ends.values():
            end.settimeout(chosen.heartbeat_s)

    def agree(self, *, stop: bool) -> bool:
        """Returns True where any process is to stop; process 0 asks and tells all."""
        said = [stop]
        if self.index == 0:
            said += [bool(self._hear(index)) for index in self._ends]
            for index in self._ends:
                self._say(index, any(said))
            return any(said)
        self._say(0, stop)
        return bool(self._hear(0))

    def _say(self, index: int, stop: bool) -> None:
        try:
            self._ends[index].sendall(bytes([stop]))
        except OSError:
            fail(index)

    def _hear(self, index: int) -> int:
        try:
            heard = self._ends[index].recv(1)
        except OSError:
            heard = b""
        return heard[0] if heard else fail(index)


def fail(index: int) -> NoReturn:
    """Ends as a run does whose peer is lost."""
    sys.stderr.write(f"no answer: process {index}; killed, out of memory, or cut off\n")
    sys.exit(1)


def loss_of(step: int) -> float:
    """Returns a number that stands for the samples of a step, on any number of hosts."""
    digest = hashlib.blake2b(str(step).encode(), digest_size=4).digest()
    return 1.0 + int.from_bytes(digest, "little") / 2**32


def save(workdir: pathlib.Path, step: int) -> None:
    """Writes a checkpoint, which appears when it is complete."""
    folder = workdir / CHECKPOINTS
    partial = folder / f"{step}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    for item in ("params", "model"):
        (partial / item).mkdir(parents=True)
    if not (folder / str(step)).exists():
        partial.rename(folder / str(step))


def run(config: Any, workdir: pathlib.Path) -> int:
    """Takes the steps that are left; returns the exit status."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    peers = Peers(config)
    main = peers.index == 0
    began, step = time.time(), run_files.newest_step(workdir)
    first = step
    if main:
        journal.begin(workdir, processes=config.distributed.num_processes, devices=1)
    stop = False
    while step < config.optimizer.iters and not stop:
        time.sleep(STEP_S)
        stop = peers.agree(stop=bool(stopped))
        step += 1
        if main:
            seconds = time.time() - began
            line = {
                "step": step,
                "loss": loss_of(step),
                "session": began,
                "session_start": first,
                "session_s_total": seconds,
                "useful_s_total": STEP_S * (step - first),
            }
            with (workdir / "metrics.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            if step % (config.save_every // 2) == 0 or stop or step == config.optimizer.iters:
                save(workdir, step)
    peers.agree(stop=False)  # all leave when the checkpoint is there
    return journal.RESUME if stop and step < config.optimizer.iters else 0


def main(_: list[str]) -> int:
    """Supervises this program, or is it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    workdir = pathlib.Path(_WORKDIR.value)
    try:
        if journal.TOKEN in os.environ:
            return run(_CONFIG.value, workdir)
        limits = Limits(_RESTARTS.value, _REJOIN.value)
        return supervise(sys.argv, _CONFIG.value, workdir, limits, program=PROGRAM)
    except (XVLAError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
