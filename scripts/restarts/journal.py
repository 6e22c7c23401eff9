"""Attempts of a supervised run: a file in ``W/restarts`` for each, and the goodput over all.

An attempt is one start of the training on its hosts. The first process writes the file when it
holds the workdir; the supervisor beside that process completes it when the attempt has ended.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from eval.files import FileError, fields, integer, parse_json
from scripts.places import files
from xvla_jax.buckets import Place, in_bucket

FOLDER: Final = "restarts"  # in the workdir
TOKEN: Final = "XVLA_JAX_ATTEMPT"  # variable that a supervisor sets for its process
RESUME: Final = 75  # exit status of a run that is saved and not complete (EX_TEMPFAIL of sysexits)
STOPPED: Final = "stopped by a signal to one of the processes"  # a cause
_CAUSE: Final = 60  # characters of a cause in a table
_NAME: Final = re.compile(r"attempt_(\d+)\.json")
_PR_SET_PDEATHSIG: Final = 1
_FORM: Final = fields(
    token={"type": "string"},
    processes=integer(1, 2**20),
    devices=integer(1, 2**20),
    began={"type": "number"},
    ended={"type": ["number", "null"]},
    first=integer(0, 2**53),
    saved=integer(0, 2**53),
    status={"type": ["integer", "null"]},
    cause={"type": "string"},
)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start of a supervised run.

    Attributes:
        token: ``LAUNCH.NUMBER``: the same launch for all attempts of one supervisor.
        processes: of the attempt.
        devices: of one process.
        began: Unix time.
        ended: Unix time; None while it runs, or where nobody saw its end.
        first: step that it resumed from.
        saved: step of the newest complete checkpoint at its end.
        status: exit status of its first process; None as for ``ended``.
        cause: why it ended; empty for a complete run.
    """

    token: str
    processes: int
    devices: int
    began: float
    ended: float | None = None
    first: int = 0
    saved: int = 0
    status: int | None = None
    cause: str = ""

    @property
    def launch(self) -> str:
        """The supervisor that started it."""
        return self.token.partition(".")[0]


def stopped_status(environ: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status after SIGTERM: `RESUME` under a supervisor, else 0."""
    return RESUME if TOKEN in environ else 0


def follow_supervisor(environ: Mapping[str, str] = os.environ) -> None:
    """Lets the kernel send this process SIGTERM when its supervisor ends; alone it does nothing."""
    if TOKEN in environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def begin(
    workdir: Place, *, processes: int, devices: int, environ: Mapping[str, str] = os.environ
) -> None:
    """Writes the file of this process's attempt; without a supervisor nothing."""
    token = environ.get(TOKEN)
    if token is None:
        return
    folder = workdir / FOLDER
    if not in_bucket(folder):
        folder.mkdir(exist_ok=True)
    numbers = [int(name[1]) for name in map(_NAME.fullmatch, files.names(folder)) if name]
    attempt = Attempt(token, processes, devices, time.time())
    _write(folder / f"attempt_{max(numbers, default=0) + 1:04d}.json", attempt)


def finish(workdir: Place, token: str, **changes: Any) -> Attempt | None:
    """Completes the file of an attempt; returns it, or None where its first process ran elsewhere.

    Args:
        workdir: of the run.
        token: of the attempt.
        **changes: fields of `Attempt`.
    """
    for path, attempt in _stored(workdir):
        if attempt.token == token:
            attempt = dataclasses.replace(attempt, **changes)
            _write(path, attempt)
            return attempt
    return None


def attempts(workdir: Place) -> list[Attempt]:
    """Returns the attempts of a run in order; a file that is damaged is left out."""
    return [attempt for _, attempt in _stored(workdir)]


def _write(path: Place, attempt: Attempt) -> None:
    files.write(path, (json.dumps(dataclasses.asdict(attempt), indent=1) + "\n").encode())


def _stored(workdir: Place) -> list[tuple[Place, Attempt]]:
    fields_known = {field.name for field in dataclasses.fields(Attempt)}
    stored: list[tuple[Place, Attempt]] = []
    for name in filter(_NAME.fullmatch, files.names(workdir / FOLDER)):
        path = workdir / FOLDER / name
        try:
            record = parse_json(files.read(path) or b"", _FORM, str(path))
        except FileError:
            continue  # cut off by the end of its host
        known = {key: value for key, value in record.items() if key in fields_known}
        stored.append((path, Attempt(**known)))
    return stored


def over_restarts(
    tried: Sequence[Attempt], lines: Sequence[Mapping[str, Any]], *, now: float | None = None
) -> dict[str, float]:
    """Returns the goodput of a run over its restarts, the time between two attempts included.

    Args:
        tried: the attempts.
        lines: every line of the run's metrics, in the order written.
        now: Unix time, for an attempt that runs; None leaves it out after its last line.

    Returns:
        ``attempts``; ``seconds`` from the first start of each launch to its end; ``idle_s`` of
        them in which no attempt was running; ``useful_s`` of steps that count; ``goodput``.
    """
    from xvla_jax.training.telemetry import goodput

    ends = [attempt.ended or _last_line(lines, attempt.began) or now for attempt in tried]
    launches: dict[str, list[tuple[float, float]]] = {}
    for attempt, end in zip(tried, ends, strict=True):
        span = (attempt.began, max(end or attempt.began, attempt.began))
        launches.setdefault(attempt.launch, []).append(span)
    seconds = sum(spans[-1][1] - spans[0][0] for spans in launches.values())
    busy = sum(end - began for spans in launches.values() for began, end in spans)
    first = min((attempt.began for attempt in tried), default=math.inf)
    useful = goodput([line for line in lines if line.get("session", -math.inf) >= first - 1])
    return {
        "attempts": len(tried),
        "seconds": seconds,
        "idle_s": max(seconds - busy, 0.0),
        "useful_s": useful["useful_s"],
        "goodput": min(useful["useful_s"] / seconds, 1.0) if seconds else 0.0,
    }


def restart_rows(workdir: Place, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns rows of a table for a run that was supervised, for another none."""
    from xvla_jax.training.telemetry import duration

    tried = attempts(workdir)
    if not tried:
        return {}
    run = over_restarts(tried, lines)
    causes = Counter(attempt.cause for attempt in tried if attempt.cause)
    return {
        "restarts": f"{len(tried) - len({attempt.launch for attempt in tried})}",
        "time between attempts": duration(run["idle_s"]),
        "goodput over restarts": f"{run['goodput']:.1%}",
        **{f"ended by: {cause[:_CAUSE]}": str(count) for cause, count in causes.items()},
    }


def _last_line(lines: Sequence[Mapping[str, Any]], began: float) -> float | None:
    """Unix time of the last line of the session that began within an attempt."""
    sessions = [line for line in lines if line.get("session", -math.inf) >= began - 1]
    if not sessions:
        return None
    first = min(line["session"] for line in sessions)
    return first + max(s["session_s_total"] for s in sessions if s["session"] == first)
