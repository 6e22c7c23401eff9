"""Runs a command of scripts/ on many mutants of one JSON file, all in one process of its own.

``python -m tests.eval.command_sweep MODULE FILE EVERY ARGUMENT ...`` replaces each field of FILE in
turn, every EVERYth mutant, calls the command's ``main`` and prints a line for each that ended in
anything but success or one line of error. A process of its own, because a mutant may take memory or
never end.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tests.eval.evaluations import resealed
from tests.json_mutants import mutants


def problem(main: Callable[[list[str]], int], arguments: list[str]) -> str:
    """Returns how a run went wrong, or nothing."""
    said = io.StringIO()
    # in a thread, whose future holds whatever error a user would see as a traceback
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        ended = pool.submit(main, arguments)
    error = ended.exception()
    if error is not None:
        return f"{type(error).__name__}: {error}"
    text, status = said.getvalue(), ended.result()
    fine = status == 0 or (status == 1 and text.startswith("error: "))
    return "" if fine else f"status {status}: {text}"


def sweep(module: str, file: Path, every: int, arguments: list[str]) -> int:
    """Prints what went wrong and the number of mutants that were tried."""
    command = importlib.import_module(module)
    rest = command.COMMAND.parse([module, *arguments])
    content = json.loads(file.read_text())
    tried = 0
    for number, (name, mutant) in enumerate(mutants(content)):
        if number % every:
            continue
        # Sealed again where its shape allows, so that more than the seal has to refuse it.
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            mutant = resealed(mutant)
        file.write_text(json.dumps(mutant))
        tried += 1
        wrong = problem(command.main, rest)
        if wrong:
            sys.stdout.write(f"{name}: {wrong}\n")
    file.write_text(json.dumps(content))
    return tried


if __name__ == "__main__":
    count = sweep(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    sys.stdout.write(f"{count} mutants\n")
