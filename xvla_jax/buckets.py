"""Files in buckets of Google Cloud Storage (``gs://``), where the library reads and writes.

A path that a user gives becomes a `Place`: pathlib's on this machine, epath's in a bucket, which
Orbax takes as it is. A store has no folders, renames or appends; what it has is enough. An object
appears complete or not at all, and a write can be made on condition of the version that it
replaces, so of two processes that create one object only one does. Requests are repeated while the
store does not answer, up to `LIMIT_S`; then, or where something is not allowed, an OSError of one
line ends them. What is copied from a store, or made for it, is in a `Scratch` folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, NamedTuple

from etils import epath

from xvla_jax.errors import ConfigError, needs

SCHEME: Final = "gs"
LIMIT_S: Final = 120.0  # for which a request is repeated
ABSENT: Final = 0  # version of an object that is not there
SCRATCH: Final = "xvla_jax_copies_"  # names of folders begin so
_KEPT: Final = "kept"  # file in one that no process removes
_THREADS: Final = 8  # transfers at a time; the client keeps ten connections

Place = pathlib.Path | epath.Path


class Object(NamedTuple):
    """An object in a folder.

    Attributes:
        name: below the folder.
        size: in bytes.
        version: its generation, another one after each write.
    """

    name: str
    size: int
    version: int


class Scratch:
    """A folder of this machine that goes with its process. A context manager of its path.

    It is locked while the process lives: the next one that makes such a folder removes those that
    killed processes have left.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        """Makes the folder in ``$TMPDIR``."""
        _remove_left_folders()
        while True:
            self.path = pathlib.Path(tempfile.mkdtemp(prefix=SCRATCH))
            handle = os.open(self.path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if self.path.exists():
                break
            os.close(handle)  # removed by another process before it was locked
        self._end = weakref.finalize(self, _remove_locked, self.path, handle)

    def __enter__(self) -> pathlib.Path:
        """Returns the folder."""
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes it."""
        self.remove()

    def remove(self) -> None:
        """Removes the folder; the end of the interpreter does it otherwise."""
        self._end()

    def keep(self) -> None:
        """Leaves the folder to the user."""
        self._end.detach()
        (self.path / _KEPT).touch()


def _remove_locked(folder: pathlib.Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)


def _remove_left_folders() -> None:
    for path in pathlib.Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # it is locked, another user's, or removed meanwhile
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not (path / _KEPT).exists():
                    shutil.rmtree(path)
            finally:
                os.close(handle)


def place_of(path: str | os.PathLike[str], *, flag: str = "") -> Place:
    """Returns the place that a user's path names.

    Args:
        path: of this machine, or ``gs://BUCKET/FOLDER``.
        flag: that gave it, for the message.

    Raises:
        ConfigError: it has another scheme, or names no folder of a bucket.
    """
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return pathlib.Path(text)
    bucket, _, folder = rest.partition("/")
    if scheme != SCHEME or not bucket or not folder.strip("/"):
        raise ConfigError(
            f"{flag + '=' if flag else ''}{text}: allowed are a path of this machine and "
            f"{SCHEME}://BUCKET/FOLDER (docs/multihost.md)"
        )
    return epath.Path(f"{SCHEME}://{bucket}/{folder.strip('/')}")


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns True for a path with a scheme."""
    return "://" in os.fspath(path)


def absolute(place: Place) -> Place:
    """Returns a place by a name that holds in every working folder."""
    # epath would take the scheme for the name of a folder
    return place if in_bucket(place) else pathlib.Path(place).resolve()


def read(path: Place) -> tuple[bytes, int]:
    """Returns the content of an object and its version; nothing and `ABSENT` if there is none."""
    with _store_errors(path):
        blob = _blob(path)
        try:
            content = blob.download_as_bytes(retry=_retry())
        except _api().exceptions.NotFound:
            _check_bucket(path)
            return b"", ABSENT
        return content, int(blob.generation)


def content_of(path: Place) -> bytes | None:
    """Returns the content of an object; None if there is none."""
    content, version = read(path)
    return None if version == ABSENT else content


def write(path: Place, content: bytes, *, replacing: int | None = None) -> int | None:
    """Writes an object, which appears complete or not at all.

    Args:
        path: of the object.
        content: bytes.
        replacing: version that must be there, `ABSENT` for none; None for any.

    Returns:
        The new version; None if another one than ``replacing`` is there.
    """
    with _store_errors(path):
        blob = _blob(path)
        try:
            blob.upload_from_string(
                content,
                content_type="application/octet-stream",
                if_generation_match=replacing,
                retry=_retry(),
            )
        except _api().exceptions.PreconditionFailed:
            # A write whose answer was lost is repeated, and then finds its own object.
            stored, version = read(path)
            return version if version != ABSENT and stored == content else None
        return int(blob.generation)


def remove(path: Place, *, version: int | None = None) -> None:
    """Removes an object, or only ``version`` of it; one that is not there is no error."""
    with _store_errors(path):
        exceptions = _api().exceptions
        with contextlib.suppress(exceptions.NotFound, exceptions.PreconditionFailed):
            _blob(path).delete(if_generation_match=version, retry=_retry())


def files(folder: Place) -> list[Object]:
    """Returns the objects of a folder and of those in it, by name."""
    with _store_errors(folder):
        bucket, prefix = _parts(folder)
        blobs = _client().list_blobs(bucket, prefix=f"{prefix}/", retry=_retry())
        return [_object(blob, prefix) for blob in blobs if not blob.name.endswith("/")]


def entries(folder: Place) -> tuple[list[Object], list[str]]:
    """Returns the objects that are directly in a folder, and the names of the folders in it."""
    with _store_errors(folder):
        bucket, prefix = _parts(folder)
        blobs = _client().list_blobs(bucket, prefix=f"{prefix}/", delimiter="/", retry=_retry())
        # the folders are known when the pages are read
        objects = [_object(blob, prefix) for blob in blobs if not blob.name.endswith("/")]
        return objects, sorted(name.rstrip("/").rpartition("/")[2] for name in blobs.prefixes)


def download(folder: Place, objects: Sequence[Object], target: pathlib.Path) -> None:
    """Copies objects of a folder to this machine, each checked against its checksum.

    Args:
        folder: in a bucket.
        objects: of it; a version that is no longer there raises an OSError.
        target: folder on this machine.
    """

    def fetch(entry: Object) -> None:
        if {"", ".", ".."} & {*entry.name.split("/")}:
            raise OSError(
                errno.EINVAL, "such a name has no place on a disk", f"{folder}/{entry.name}"
            )
        file, place = target / entry.name, folder / entry.name
        file.parent.mkdir(parents=True, exist_ok=True)
        with _store_errors(place):
            _blob(place).download_to_filename(
                str(file), if_generation_match=entry.version, retry=_retry()
            )

    _each(fetch, objects)


def upload(source: pathlib.Path, names: Sequence[str], folder: Place) -> None:
    """Copies files of this machine into a folder of a bucket.

    Args:
        source: folder on this machine.
        names: of files below it.
        folder: in a bucket.
    """

    def send(name: str) -> None:
        with _store_errors(folder / name):
            _blob(folder / name).upload_from_filename(
                str(source / name), content_type="application/octet-stream", retry=_retry()
            )

    _each(send, names)


def _each(do: Any, items: Sequence[Any]) -> None:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="bucket") as pool:
        for _ in pool.map(do, items):
            pass


def _object(blob: Any, prefix: str) -> Object:
    return Object(blob.name.removeprefix(f"{prefix}/"), int(blob.size), int(blob.generation))


def _parts(path: Place) -> tuple[str, str]:
    bucket, _, name = os.fspath(path).removeprefix(f"{SCHEME}://").partition("/")
    return bucket, name


def _blob(path: Place) -> Any:
    bucket, name = _parts(path)
    return _client().bucket(bucket).blob(name)


def _check_bucket(path: Place) -> None:
    """Raises what the store says of a bucket that is not there, by listing nothing of it."""
    bucket, _ = _parts(path)
    list(_client().list_blobs(bucket, max_results=1, prefix="\0", retry=_retry()))


@functools.cache
def _client() -> Any:
    # Imported late: the package is an extra, which a run on local disks does without.
    with needs("gcs"):
        from google.cloud import storage
    return storage.Client()


def _api() -> Any:
    with needs("gcs"):
        import google.api_core.exceptions
    return google.api_core


def _retry() -> Any:
    with needs("gcs"):
        from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(LIMIT_S).with_delay(initial=0.5, maximum=16.0)


@contextlib.contextmanager
def _store_errors(path: Place) -> Iterator[None]:
    """Raises an OSError of one line for what Google's client raises."""
    with needs("gcs"):
        import google.auth.exceptions
        import requests.exceptions
        from google.api_core import exceptions
        from google.cloud.storage.exceptions import DataCorruption
    try:
        yield
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise PermissionError(
            errno.EACCES, f"the account of this machine may not do this: {_line(error)}", str(path)
        ) from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionError(
            errno.EACCES,
            f"no account of Google Cloud for this machine: {_line(error)}",
            str(path),
        ) from error
    except exceptions.NotFound as error:
        raise FileNotFoundError(
            errno.ENOENT, "there is no such object, or no such bucket", str(path)
        ) from error
    except DataCorruption as error:
        raise OSError(errno.EIO, "it came with other bytes than were stored", str(path)) from error
    except exceptions.PreconditionFailed as error:
        raise OSError(errno.ESTALE, "another process has changed it", str(path)) from error
    except (exceptions.GoogleAPIError, requests.exceptions.RequestException) as error:
        raise OSError(
            errno.EIO, f"the store gave no answer for {LIMIT_S:.0f} s: {_line(error)}", str(path)
        ) from error


def _line(error: Exception) -> str:
    """Returns the first line of what the client says."""
    text = getattr(error, "message", "") or str(getattr(error, "cause", None) or error)
    return text.partition("\n")[0][:200]
