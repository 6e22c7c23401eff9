"""A folder appears complete or not at all, whatever stops its writer."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xvla_jax.checkpoints.folders import atomic_folder, check_target
from xvla_jax.errors import CheckpointError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "out") as scratch:
        (scratch / "file").touch()
        assert not (tmp_path / "deep" / "out").exists()
    assert _names(tmp_path / "deep") == ["out"]
    assert _names(tmp_path / "deep" / "out") == ["file"]


def _write_and_fail(folder: Path, error: type[BaseException]) -> None:
    with atomic_folder(folder, overwrite=True) as scratch:
        (scratch / "new").touch()
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_folder_alone(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(error):
        _write_and_fail(tmp_path / "out", error)
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["old"]


def test_a_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as scratch:  # an empty folder may be there
        (scratch / "first").touch()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        atomic_folder(tmp_path / "out").__enter__()
    with atomic_folder(tmp_path / "out", overwrite=True) as scratch:
        (scratch / "second").touch()
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["second"]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file"):
        atomic_folder(tmp_path / "file", overwrite=True).__enter__()


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from xvla_jax.checkpoints.folders import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as scratch:\n"
        "    (scratch / 'sub').mkdir(); (scratch / 'sub' / 'half').touch()\n"
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert _names(tmp_path) == [".out.part"]
    with atomic_folder(tmp_path / "out") as scratch:
        assert _names(scratch) == []
    assert _names(tmp_path) == ["out"]


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "only copy").touch()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        atomic_folder(tmp_path / "out").__enter__()
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["only copy"]


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    handle = os.open(tmp_path / ".out.part", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="is being written by another process"):
        atomic_folder(tmp_path / "out").__enter__()
    os.close(handle)
    with atomic_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize(("source", "target"), [("a", "a/b"), ("a/b", "a"), ("a", "a/../a")])
def test_source_and_target_do_not_lie_in_one_another(
    source: str, target: str, tmp_path: Path
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="lie in one another"):
        check_target(tmp_path / target, overwrite=True, source=tmp_path / source)
    check_target(tmp_path / "ab", source=tmp_path / "a")
