"""Measures speed, resume and memory of the data pipeline, beside X-VLA's reader given PyTorch.

``python -m benchmarks.data [--quick] [--only=PART ...] [--workdir=FOLDER]
[--json=FILE.json] [--torch_python=EXE]``

The recordings are generated into a temporary folder, or into --workdir, where a later run finds
them. Contestants take turns within one run, so that other load on the machine meets all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

from absl import app, flags
from rich.console import Console

from benchmarks.data import endurance, many_sets, speed, table
from eval.files import write_json
from scripts.terminal import quiet_libraries

_PARTS: Final = ("hdf5", "rlds", "stages", "resume", "memory", "mixture")

_QUICK = flags.DEFINE_bool("quick", False, "Fewer files and steps: under 5 minutes on 2 cores.")
_ONLY = flags.DEFINE_multi_enum("only", list(_PARTS), _PARTS, "These parts; may be repeated.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Keeps the recordings; a temporary one if empty.")
_JSON = flags.DEFINE_string("json", "outputs/data.json", "Where the figures go.")
_TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", sys.executable, "Interpreter with this package's requirements and PyTorch."
)


def measure(workdir: pathlib.Path, console: Console) -> dict[str, Any]:
    """Returns the figures of the parts that --only names."""
    quick = _QUICK.value
    measures: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
        "hdf5": (speed.hdf5, {"python": _TORCH_PYTHON.value, "quick": quick}),
        "rlds": (speed.rlds, {"quick": quick}),
        "stages": (speed.stages, {"quick": quick}),
        "resume": (endurance.resume, {"steps": 10_000}),
        "memory": (endurance.memory, {"steps": 5_000 if quick else 20_000}),
        "mixture": (many_sets.many_sets, {"quick": quick}),
    }
    record: dict[str, Any] = {"quick": quick, "cores": os.cpu_count()}
    for part in _PARTS:
        if part in _ONLY.value:
            console.print(f"measuring {part}")
            function, options = measures[part]
            # a process for each part: what one leaves in memory does not burden the next
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as process:
                record[part] = process.submit(function, workdir, **options).result()
    return record


def main(argv: list[str]) -> None:
    """Measures, prints the table, writes the JSON."""
    del argv
    quiet_libraries()
    console = Console(width=120)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        record = measure(pathlib.Path(_WORKDIR.value or temporary), console)
    record["seconds"] = time.perf_counter() - started
    table.show(console, record)
    out = pathlib.Path(_JSON.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    console.print(f"written to {out} after {record['seconds']:.0f} s", markup=False)


if __name__ == "__main__":
    app.run(main)
