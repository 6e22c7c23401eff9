"""The folder of a run: on a disk, or in a bucket with its small files on this machine.

Metrics, TensorBoard's files and the like are appended to, which a store cannot do. In a bucket they
are files in the scratch space of this machine, and what has changed is copied every `EVERY_S`
seconds, before each checkpoint, and at the end: so the bucket has the metrics of every step up to
its newest checkpoint. Checkpoints go to the bucket at once.
"""

from __future__ import annotations

import logging
import pathlib
import shutil
import tempfile
import threading
from types import TracebackType
from typing import Final

from scripts.terminal import message
from xvla_jax import buckets
from xvla_jax.training.workdir_lock import LOCK_NAME

EVERY_S: Final = 30.0

_log = logging.getLogger(__name__)

_Stamp = tuple[int, int]  # size and time of a file


class Workdir:
    """The folder of a run. A context manager.

    Attributes:
        place: the folder, as the user gave it; checkpoints are below.
        local: folder of the small files: the same one on a disk.
    """

    def __init__(self, place: buckets.Place, *, every_s: float = EVERY_S) -> None:
        """Takes the folder's place; ``every_s`` are the seconds between two copies."""
        self.place = place
        self.in_bucket = buckets.in_bucket(place)
        self._scratch = tempfile.mkdtemp(prefix="xvla_jax_run_") if self.in_bucket else None
        # with the run's name, which tables show
        self.local = (
            pathlib.Path(self._scratch, place.name) if self._scratch else pathlib.Path(place)
        )
        self._copied: dict[str, _Stamp] = {}
        self._copying = threading.Lock()
        self._every_s, self._done = every_s, threading.Event()
        self._thread = threading.Thread(target=self._copy_again, name="workdir", daemon=True)

    def __enter__(self) -> Workdir:
        """Copies what earlier processes of the run have left, and begins to copy what changes.

        Raises:
            OSError: the bucket cannot be read.
        """
        if self.in_bucket:
            self.local.mkdir()
            objects, _ = buckets.entries(self.place)
            buckets.download(self.place, [o for o in objects if o.name != LOCK_NAME], self.local)
            self._copied = self._stamps()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Copies the last changes, and removes the folder of this machine if all are copied."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.copy() and self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def copy(self) -> bool:
        """Copies the files that have changed into the bucket; returns False where it failed.

        A failure is logged: what is copied next holds the same lines.
        """
        if not self.in_bucket or not self.local.exists():
            return True
        with self._copying:
            stamps = self._stamps()
            names = [name for name in stamps if self._copied.get(name) != stamps[name]]
            try:
                buckets.upload(self.local, names, self.place)
            except OSError as error:
                _log.warning("files of the run stay in %s for now: %s", self.local, message(error))
                return False
            self._copied |= stamps
        return True

    def _copy_again(self) -> None:
        while not self._done.wait(self._every_s):
            self.copy()

    def _stamps(self) -> dict[str, _Stamp]:
        stats = {
            path.relative_to(self.local).as_posix(): path.stat()
            for path in sorted(self.local.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
