"""LIBERO's public demonstration files, as far as their conversion needs them.

One file is one task, SUITE/TASK_demo.hdf5: `data/demo_i` has `states` [T, S] and relative `actions`
[T, 7]. The images in it are small and upside down; the conversion renders them again. The attribute
that names the task's BDDL file is not read: it has paths of the machine that recorded it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.faults import needs
from data.readers.hdf5_files import check_size, has_key, stored_array

with needs("data"):
    import h5py

_DEMO = re.compile(r"demo_(\d+)")
_SUFFIX = "_demo"


@dataclass(frozen=True)
class LiberoFile:
    """One task's recordings: file, suite, task, and the numbers of its demos."""

    path: Path
    suite: str
    task: str
    demos: tuple[int, ...]


def find_libero_files(folder: Path, suites: Sequence[str]) -> list[LiberoFile]:
    """Lists the LIBERO recordings below `folder`, by suite and name.

    Raises:
        ValueError: there is none, one is not of the public form, a task comes twice, or a suite is
            not one of `suites`.
    """
    paths = sorted(folder.rglob("*.hdf5"))
    if not paths:
        raise ValueError(f"no .hdf5 file below {folder}")
    files = [_open(path, suites) for path in paths]
    by_task = {(file.suite, file.task): file for file in files}
    for file in files:
        other = by_task[file.suite, file.task]
        if other is not file:
            raise ValueError(f"{file.path} and {other.path} are of the same task")
    return sorted(files, key=lambda file: (file.suite, file.task))


def read_libero_demo(
    file: LiberoFile, number: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first state [S] and the actions [T, 7] of a demo.

    Raises:
        ValueError: an array is missing, of another shape, or has a number that is not finite.
    """
    where = f"{file.path}: data/demo_{number}"
    with h5py.File(file.path) as opened:
        arrays = {}
        for name in ("states", "actions"):
            try:
                array = stored_array(opened, f"data/demo_{number}/{name}")
            except KeyError as error:
                raise ValueError(f"{where} has no array {name!r}") from error
            check_size(array, f"{where}/{name}")
            arrays[name] = np.asarray(array[:1] if name == "states" else array[()], np.float64)
    state, actions = arrays["states"], arrays["actions"]
    if state.ndim != 2 or not len(state) or actions.ndim != 2 or actions.shape[1:] != (7,):
        raise ValueError(
            f"{where} has states {state.shape[1:]} and actions {actions.shape}; needed are states "
            "[T, S] and actions [T, 7], T at least 1"
        )
    if not (np.isfinite(state).all() and np.isfinite(actions).all()):
        raise ValueError(f"{where} has a number that is not finite")
    return state[0], actions


def _open(path: Path, suites: Sequence[str]) -> LiberoFile:
    suite, task = path.parent.name, path.stem.removesuffix(_SUFFIX)
    if suite not in suites or task == path.stem:
        raise ValueError(
            f"{path}: LIBERO's files are SUITE/TASK{_SUFFIX}.hdf5, with SUITE one of "
            f"{', '.join(suites)} (eval/tasks/libero.py)"
        )
    try:
        with h5py.File(path) as file:
            group = file["data"] if has_key(file, "data") else None
            names = [str(name) for name in group] if isinstance(group, h5py.Group) else []
    except OSError as error:
        raise ValueError(f"{path} is no HDF5 file: {error}") from error
    matches = [_DEMO.fullmatch(name) for name in names]
    demos = tuple(sorted(int(match[1]) for match in matches if match))
    if not demos:
        raise ValueError(f"{path} has no group data/demo_0, data/demo_1, ...")
    return LiberoFile(path, suite, task, demos)
