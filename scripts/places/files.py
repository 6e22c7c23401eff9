"""Single files on a disk or in a bucket.

The clients of buckets are imported where a place is in one: commands that read receipts start at
once otherwise.
"""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from eval.files import write_bytes
from scripts.terminal import UsageError

if TYPE_CHECKING:
    from xvla_jax.buckets import Place


def place_of(path: str, *, flag: str = "") -> Place:
    """Returns the place that a user's path names.

    Args:
        path: of this machine, or ``gs://BUCKET/FOLDER``.
        flag: that gave it, for the message.

    Raises:
        UsageError: it names no folder of a bucket.
    """
    if "://" not in path:
        return pathlib.Path(path)
    from xvla_jax import buckets
    from xvla_jax.errors import ConfigError

    try:
        return buckets.place_of(path, flag=flag)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def read(path: Place) -> bytes | None:
    """Returns the content of a file; None where there is none.

    Raises:
        OSError: it cannot be read.
    """
    if not isinstance(path, pathlib.Path):
        from xvla_jax import buckets

        return buckets.content_of(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: Place, content: bytes) -> None:
    """Writes a file, which appears complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(path, pathlib.Path):
        write_bytes(path, content)
        return
    from xvla_jax import buckets

    buckets.write(path, content)


def rewrite(path: Place, content: bytes) -> None:
    """Writes a file of an unchanging size in place: hosts on NFS see it when they open the file.

    Raises:
        OSError: it cannot be written.
    """
    if not isinstance(path, pathlib.Path):
        write(path, content)
        return
    handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        os.pwrite(handle, content, 0)
    finally:
        os.close(handle)


def names(folder: Place) -> list[str]:
    """Returns the names of the files in a folder, in order; none where there is no folder."""
    if not isinstance(folder, pathlib.Path):
        from xvla_jax import buckets

        return sorted(entry.name for entry in buckets.entries(folder)[0])
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
