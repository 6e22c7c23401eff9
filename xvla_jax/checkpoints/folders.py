"""Folders that appear complete or not at all, and disks that are full, read-only or failing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Final

from xvla_jax.errors import CheckpointError

_CODE: Final = re.compile(r"os_error_code='(\d+)'")  # as TensorStore writes it
_CODE_BY_TEXT: Final = {
    os.strerror(code): code
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES)
}


@contextlib.contextmanager
def atomic_folder(
    folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a hidden folder beside ``folder`` that takes its name if the block raises nothing.

    A killed process leaves only that hidden folder; the next one with the same target removes it.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        overwrite: replace the folder, once the new one is complete.

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
    """Makes the empty folder ``scratch`` and locks it; a killed process loses the lock."""
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


def check_free(folder: pathlib.Path, nbytes: int) -> None:
    """Raises the OSError of a full disk if ``folder`` has less than ``nbytes`` bytes of room."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: {nbytes / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB "
            "are free",
            str(folder),
        )


@contextlib.contextmanager
def disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """Raises an OSError for what TensorStore and Orbax raise about the disk of ``folder``."""
    try:
        yield
    except OSError:
        raise
    except (ValueError, RuntimeError) as error:
        code = _os_error_code(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from None


def _os_error_code(error: BaseException) -> int | None:
    """Returns the number of the system's error behind an exception; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        number = _CODE.search(str(cause))
        if number:
            return int(number[1])
        for text, code in _CODE_BY_TEXT.items():
            if text in str(cause):
                return code
        cause = cause.__cause__ or cause.__context__
    return None
