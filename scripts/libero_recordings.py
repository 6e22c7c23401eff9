"""LIBERO's public recordings, and what their conversion is kept as."""

from __future__ import annotations

import pathlib

from data.readers.libero_hdf5 import find_libero_files, read_libero_demo
from data.writing.publish import sha256_of
from eval.conversion import Conversion, conversion_settings
from eval.recording.libero_absolute import Demonstration
from eval.tasks.table import TASKS, TaskSpec


def suites() -> dict[str, TaskSpec]:
    """The rows of the task table that are a suite of LIBERO under its own name."""
    return {n: spec for n, spec in TASKS.items() if spec.benchmark == "libero" and n == spec.suite}


def open_conversion(folder: pathlib.Path, out: pathlib.Path, demos: int) -> Conversion:
    """The conversion of all recordings below `folder`, or of the first `demos` of each task."""
    specs = suites()
    files = find_libero_files(folder, tuple(specs))
    recordings = [
        Demonstration(file.suite, file.task, number, *read_libero_demo(file, number))
        for file in files
        for number in (file.demos[:demos] if demos else file.demos)
    ]
    sources = {f"{file.suite}/{file.path.name}": sha256_of(file.path) for file in files}
    used = {file.suite: specs[file.suite] for file in files}
    return Conversion(out, recordings, conversion_settings(sources, used))
