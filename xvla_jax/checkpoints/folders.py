"""Folders that appear complete or not at all, and disks that are full, read-only or failing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from typing import Final

from xvla_jax import buckets
from xvla_jax.errors import CheckpointError

INCOMPLETE: Final = "INCOMPLETE"  # object in a folder of a bucket that is being written
COMMITTED: Final = "commit_success.txt"  # Orbax's; in a bucket it is the last file of a step
_OF_STEP: Final = "_CHECKPOINT_METADATA"  # Orbax's, in each step
_LAST: Final = ("config.json", COMMITTED, "adapter_config.json")

_CODE: Final = re.compile(r"os_error_code='(\d+)'")  # as TensorStore writes it
_STATUS: Final = re.compile(r"[A-Z_]+: ")  # as TensorStore begins what a store refuses
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
    For a target in a bucket the hidden folder is in the scratch space of this machine, and an
    object says that the target is incomplete until all files are copied.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        overwrite: replace the folder, once the new one is complete; in a bucket, file by file.

    Raises:
        CheckpointError: the folder is in use, or another process is writing it.
    """
    place = buckets.place_of(folder)
    check_target(place, overwrite=overwrite)
    if buckets.in_bucket(place):
        with _uploaded_folder(place, overwrite=overwrite) as scratch:
            yield scratch
        return
    folder = pathlib.Path(place)
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
    place = buckets.place_of(folder)
    if buckets.in_bucket(place) or (source is not None and buckets.in_bucket(source)):
        _check_target_in_bucket(place, overwrite=overwrite, source=source)
        return
    folder = pathlib.Path(place)
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


def _check_target_in_bucket(
    folder: buckets.Place, *, overwrite: bool, source: str | os.PathLike[str] | None
) -> None:
    """Does what `check_target` does, where one of the two is in a bucket."""
    if source is not None and buckets.in_bucket(source) and buckets.in_bucket(folder):
        ours, theirs = (f"{str(path).rstrip('/')}/" for path in (folder, source))
        if ours.startswith(theirs) or theirs.startswith(ours):
            raise CheckpointError(
                f"{folder} and {source} lie in one another; give a target outside the source"
            )
    if not buckets.in_bucket(folder):
        check_target(folder, overwrite=overwrite)
    elif not overwrite:
        objects, folders = buckets.entries(folder)
        check_uploaded(folder, [entry.name for entry in objects])
        if objects or folders:
            raise CheckpointError(
                f"{folder} exists and is not empty; choose another folder or remove it"
            )


def check_uploaded(folder: buckets.Place, names: Collection[str]) -> None:
    """Refuses a folder of a bucket whose files are being written.

    Args:
        folder: in a bucket.
        names: of its objects.

    Raises:
        CheckpointError: names the process that began to write it.
    """
    if INCOMPLETE in names:
        writer, _ = buckets.read(folder / INCOMPLETE)
        raise CheckpointError(
            f"{folder} is incomplete: {writer.decode(errors='replace') or 'a process'} began to "
            "write it. If that has ended, write it again, with --overwrite"
        )


@contextlib.contextmanager
def _uploaded_folder(folder: buckets.Place, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a folder of this machine whose files are copied to ``folder`` if nothing is raised."""
    before = [entry.name for entry in buckets.files(folder)]
    me = f"process {os.getpid()} on host {socket.gethostname()}, {time.strftime('%FT%T%z')},"
    # Created by one process only; also the first thing that a bucket without permission refuses.
    version = buckets.write(
        folder / INCOMPLETE, me.encode(), replacing=None if overwrite else buckets.ABSENT
    )
    if version is None:
        check_uploaded(folder, [INCOMPLETE])
    is_touched = INCOMPLETE in before  # by a process that did not end it
    try:
        with buckets.Scratch() as copies:
            scratch = copies / folder.name
            scratch.mkdir()
            yield scratch
            _mark_steps(scratch)
            files = (path for path in sorted(scratch.rglob("*")) if path.is_file())
            names = [path.relative_to(scratch).as_posix() for path in files]
            is_touched = True
            # By its last files, readers that do not know of the mark take a folder for complete.
            for name in filter(_is_last, before):
                buckets.remove(folder / name)
            buckets.upload(scratch, [name for name in names if not _is_last(name)], folder)
            for name in {*before} - {*names, INCOMPLETE}:
                buckets.remove(folder / name)
            for name in sorted(filter(_is_last, names), key=lambda name: -name.count("/")):
                buckets.upload(scratch, [name], folder)
        is_touched = False
    finally:
        if not is_touched:
            buckets.remove(folder / INCOMPLETE, version=version)


def _mark_steps(scratch: pathlib.Path) -> None:
    """Writes the files by which Orbax knows, in a bucket, that a step and its items are complete.

    On a disk a step that is complete has its name, and Orbax does not look for them.
    """
    for step in [path.parent for path in scratch.rglob(_OF_STEP)]:
        for folder in (step, *filter(pathlib.Path.is_dir, step.iterdir())):
            (folder / COMMITTED).write_text(f"{folder.name} is complete\n")


def _is_last(name: str) -> bool:
    return pathlib.PurePath(name).name in _LAST


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


def check_free(folder: buckets.Place, nbytes: int) -> None:
    """Raises the OSError of a full disk if ``folder`` has less than ``nbytes`` bytes of room.

    Of a bucket that is the scratch space of this machine, where its files are made.
    """
    if buckets.in_bucket(folder):
        folder = pathlib.Path(tempfile.gettempdir())
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
def disk_errors(folder: buckets.Place) -> Iterator[None]:
    """Raises an OSError for what TensorStore and Orbax raise about the disk of ``folder``.

    One such error is enough: the event loop logs no traceback of the writes that were under way
    beside the one that failed.
    """
    logging.getLogger("asyncio").addFilter(_is_not_of_the_disk)
    try:
        yield
    except OSError:
        raise
    except (ValueError, RuntimeError) as error:
        code = _os_error_code(error)
        if code is None and buckets.in_bucket(folder) and _STATUS.match(str(error)):
            raise OSError(errno.EIO, str(error).partition(" [")[0], str(folder)) from error
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from None


def _is_not_of_the_disk(record: logging.LogRecord) -> bool:
    """Returns False for the loop's report of a disk error; it may come whenever memory is freed."""
    error = record.exc_info[1] if record.exc_info else None
    unclaimed = record.getMessage().partition("\n")[0].endswith("exception was never retrieved")
    return not (unclaimed and error and _os_error_code(error) in _CODE_BY_TEXT.values())


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
