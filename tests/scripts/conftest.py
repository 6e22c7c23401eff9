"""Fixtures of the tests that run commands: demonstrations, and a cache of compiled programs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data.rows.table import dataset
from data.writing.recorded import write_dataset
from tests.data.writing.test_recorded import OPTIONS, episode
from tests.scripts.runs import end, start


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three made-up demonstrations in RLDS."""
    folder = tmp_path_factory.mktemp("demos")
    rate_hz = dataset("libero_demos").rate_hz
    paths = [folder / f"{number}.npz" for number in (0, 2, 3)]  # 1 would be a failure
    for number, path in zip((0, 2, 3), paths, strict=True):
        np.savez(path, **episode(number, frames=20, rate_hz=rate_hz))
    write_dataset(paths, folder / "rlds", **OPTIONS)
    return folder / "rlds"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled programs, shared by all runs and all pytest processes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def straight(demos: Path, compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of eight steps that nothing stopped."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    status, output = end(start(demos, workdir, compiled=compiled))
    assert status == 0, output
    return workdir
