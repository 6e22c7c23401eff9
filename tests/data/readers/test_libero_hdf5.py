"""LIBERO's public files: what is read of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.readers.libero_hdf5 import find_libero_files, read_libero_demo
from tests.eval.recordings import write_libero_file

SUITES = ("libero_goal", "libero_10")
STATES = np.arange(12.0).reshape(3, 4)
ACTIONS = np.linspace(-1, 1, 21).reshape(3, 7)


def test_files_are_listed_by_suite_and_task_and_demos_in_order(tmp_path: Path) -> None:
    write_libero_file(tmp_path / "libero_goal/push_demo.hdf5", [(STATES, ACTIONS)] * 11)
    write_libero_file(tmp_path / "libero_10/both_demo.hdf5", [(STATES + 1, 2 * ACTIONS)])
    both, push = find_libero_files(tmp_path, SUITES)
    assert (both.suite, both.task, both.demos) == ("libero_10", "both", (0,))
    assert (push.suite, push.task, push.demos) == ("libero_goal", "push", tuple(range(11)))
    state, actions = read_libero_demo(both, 0)
    np.testing.assert_array_equal(state, [1, 2, 3, 4])
    np.testing.assert_array_equal(actions, 2 * ACTIONS)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("libero_100/push_demo.hdf5", "SUITE one of libero_goal, libero_10"),
        ("libero_goal/push.hdf5", "LIBERO's files are SUITE/TASK_demo.hdf5"),
        ("readme.txt", "no .hdf5 file below"),
    ],
)
def test_files_of_another_name_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    write_libero_file(tmp_path / name, [(STATES, ACTIONS)])
    with pytest.raises(ValueError, match=reason):
        find_libero_files(tmp_path, SUITES)


def test_files_of_another_content_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "libero_goal/push_demo.hdf5"
    write_libero_file(path, [])
    with pytest.raises(ValueError, match=r"has no group data/demo_0"):
        find_libero_files(tmp_path, SUITES)
    path.write_bytes(b"half a download")
    with pytest.raises(ValueError, match=r"push_demo\.hdf5 is no HDF5 file"):
        find_libero_files(tmp_path, SUITES)
    write_libero_file(tmp_path / "b/libero_goal/push_demo.hdf5", [(STATES, ACTIONS)])
    write_libero_file(path, [(STATES, ACTIONS)])
    with pytest.raises(ValueError, match="are of the same task"):
        find_libero_files(tmp_path, SUITES)


@pytest.mark.parametrize(
    ("states", "actions", "reason"),
    [
        (STATES, ACTIONS[:, :6], r"actions \(3, 6\); needed are states"),
        (STATES[:0], ACTIONS[:0], "T at least 1"),
        (STATES, np.where(ACTIONS == 1, np.nan, ACTIONS), "not finite"),
    ],
)
def test_bad_arrays_are_refused(
    states: np.ndarray, actions: np.ndarray, reason: str, tmp_path: Path
) -> None:
    write_libero_file(tmp_path / "libero_goal/push_demo.hdf5", [(states, actions)])
    (file,) = find_libero_files(tmp_path, SUITES)
    with pytest.raises(ValueError, match=reason):
        read_libero_demo(file, 0)
    with pytest.raises(ValueError, match=r"data/demo_7 has no array 'states'"):
        read_libero_demo(file, 7)
