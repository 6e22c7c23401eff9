"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from xvla_jax.errors import CheckpointError


@contextlib.contextmanager
def whole_folder(
    folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a hidden folder beside ``folder`` that takes its name when the block ends well.

    A killed process leaves only that hidden folder; the next one with the same target removes it.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        overwrite: replace the folder, once the new one is whole.

    Raises:
        CheckpointError: the folder is in use, or another process is writing it.
    """
    folder = pathlib.Path(folder)
    check_target(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    with _lock(scratch):
        try:
            if old.exists() and not folder.exists():  # killed between the two renames below
                old.rename(folder)
                check_target(folder, overwrite=overwrite)
            shutil.rmtree(old, ignore_errors=True)
            yield scratch
            if folder.exists():
                folder.rename(old)
            scratch.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_target(
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Refuses a target that is in use, or that lies in its source or around it.

    Raises:
        CheckpointError: says which, and what to do.
    """
    folder = pathlib.Path(folder)
    if source is not None:
        ours, theirs = folder.resolve(), pathlib.Path(source).resolve()
        if ours == theirs or theirs in ours.parents or ours in theirs.parents:
            raise CheckpointError(
                f"{folder} and {source} lie in one another; give a target outside the source"
            )
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise CheckpointError(
            f"{folder} exists and is not empty; choose another folder or remove it"
        )


@contextlib.contextmanager
def _lock(scratch: pathlib.Path) -> Iterator[None]:
    """Makes the empty folder ``scratch`` and holds it; the system frees it if we are killed."""
    scratch.mkdir(exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{scratch} is being written by another process") from error
        for left in scratch.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        yield
    finally:
        os.close(handle)
