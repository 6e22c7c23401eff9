"""A folder that a command works in: on a disk, or in a bucket with its small files on this machine.

Metrics, journals, TensorBoard's files and the like are appended to, which a store cannot do. In a
bucket they are files in the scratch space of this machine, and what has changed is copied every
`EVERY_S` seconds, when `copy` is called, and at the end. A training calls it before each
checkpoint, which goes to the bucket at once: so the bucket has the metrics of every step up to its
newest checkpoint.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import pathlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

from eval.runs.journal import JOURNAL
from eval.runs.receipt import RESULTS
from scripts.terminal import Termination, message

if TYPE_CHECKING:
    from xvla_jax import buckets

EVERY_S: Final = 30.0

# Names of files -> order of copying; others are between. A journal names what lies beside it, and
# readers take a folder with a receipt for complete.
_ORDER: Final = {JOURNAL: -1, RESULTS: 1}

_log = logging.getLogger(__name__)

_Stamp = tuple[int, int]  # size and time of a file


class Workdir:
    """A folder that a command works in. A context manager.

    Attributes:
        place: the folder, as the user gave it; checkpoints of a run are below.
        in_bucket: True where that is in a bucket.
        local: folder of the files: the same one on a disk.
    """

    def __init__(
        self, place: buckets.Place, *, needed: Sequence[str] = (), every_s: float = EVERY_S
    ) -> None:
        """Takes a place.

        Args:
            place: folder on a disk or in a bucket.
            needed: patterns of files in its folders, such as ``films/*``, beside its own files.
            every_s: seconds between two copies.
        """
        self.place = place
        self.in_bucket = not isinstance(place, pathlib.Path)
        self._scratch = _scratch() if self.in_bucket else None
        # with the folder's name, which tables show
        self.local = self._scratch.path / place.name if self._scratch else pathlib.Path(place)
        self._needed = ("*", *needed)
        self._copied: dict[str, _Stamp] = {}
        self._copying = threading.Lock()
        self._every_s, self._done = every_s, threading.Event()
        self._thread = threading.Thread(target=self._copy_again, name="workdir", daemon=True)

    def __enter__(self) -> Workdir:
        """Copies what earlier processes have left, and begins to copy what changes.

        Raises:
            OSError: the bucket cannot be read.
        """
        if self.in_bucket:
            self._fetch()
            self._copied = self._stamps()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Copies the last changes, and removes the folder of this machine if all are copied.

        Errors that pass name the place.
        """
        if self.in_bucket and error is not None:
            error.args = tuple(self.named(a) if isinstance(a, str) else a for a in error.args)
            if isinstance(error, OSError) and error.filename is not None:
                error.filename = self.named(str(error.filename))
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._scratch:
            (self._scratch.remove if self.copy() else self._scratch.keep)()

    def named(self, text: str) -> str:
        """Returns a text with the place in the stead of the folder of this machine."""
        return text.replace(str(self.local), str(self.place))

    def copy(self) -> bool:
        """Copies the files that have changed into the bucket; returns False where it failed.

        A failure is logged: what is copied next holds the same lines.
        """
        try:
            self.save()
        except OSError as error:
            _log.warning("files of the run stay in %s for now: %s", self.local, message(error))
            return False
        return True

    def save(self) -> None:
        """Does what `copy` does.

        Raises:
            OSError: it failed.
        """
        if not self.in_bucket or not self.local.exists():
            return
        from xvla_jax import buckets

        with self._copying:
            stamps = self._stamps()
            for name in self._copied.keys() - stamps:
                buckets.remove(self.place / name)
                del self._copied[name]
            changed = [name for name in stamps if self._copied.get(name) != stamps[name]]
            for order in sorted({*map(_order, changed)}):
                names = [name for name in changed if _order(name) == order]
                buckets.upload(self.local, names, self.place)
            self._copied |= stamps

    def _fetch(self) -> None:
        from xvla_jax import buckets
        from xvla_jax.training.workdir_lock import LOCK_NAME

        self.local.mkdir()
        for pattern in self._needed:
            folder, _, names = pattern.rpartition("/")
            objects = [
                entry
                for entry in buckets.entries(self.place / folder)[0]
                if fnmatch.fnmatchcase(entry.name, names) and entry.name != LOCK_NAME
            ]
            buckets.download(self.place / folder, objects, self.local / folder)

    def _copy_again(self) -> None:
        while not self._done.wait(self._every_s):
            self.copy()

    def _stamps(self) -> dict[str, _Stamp]:
        stamps = {}
        for path in sorted(self.local.rglob("*")):
            if path.is_file() and not (path.name.startswith(".") or path.suffix == ".partial"):
                stat = path.stat()
                stamps[path.relative_to(self.local).as_posix()] = stat.st_size, stat.st_mtime_ns
        return stamps


@contextlib.contextmanager
def held(place: buckets.Place, *, flag: str, needed: Sequence[str] = ()) -> Iterator[Workdir]:
    """Yields a folder that no other process works in meanwhile, if it is in a bucket.

    On a disk, who writes a journal there locks it. For a bucket, SIGTERM is raised as SystemExit,
    so that the last changes are copied.

    Args:
        place: of the folder.
        flag: that gave it, for messages.
        needed: as for `Workdir`.

    Raises:
        TrainingError: another process holds it.
        OSError: the bucket cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(place, pathlib.Path):
            from xvla_jax.training import workdir_lock

            logging.getLogger(workdir_lock.__name__).setLevel(logging.INFO)  # why it waits
            stack.enter_context(Termination())
            stack.enter_context(workdir_lock.WorkdirLock(place, flag=flag, take_over=None))
        yield stack.enter_context(Workdir(place, needed=needed))


def _order(name: str) -> int:
    return _ORDER.get(name.rpartition("/")[2], 0)


def _scratch() -> buckets.Scratch:
    from xvla_jax import buckets

    return buckets.Scratch()
