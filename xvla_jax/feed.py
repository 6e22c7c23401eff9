"""Host batches -> device: the next batch is placed while the step before it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from xvla_jax.batch import IMAGE_FIELDS, check_batch
from xvla_jax.config import XVLAConfig
from xvla_jax.sharding import global_batch


class BatchSource(Protocol):
    """An endless iterator of host batches that knows where it stands."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """This process's part of the next global batch."""
        ...

    @property
    def position(self) -> Mapping[str, Any]:
        """Place in the stream after the last batch, as plain JSON values."""
        ...

    @property
    def samples(self) -> Sequence[str]:
        """What each row of the last batch is: dataset, episode, frame."""
        ...

    @property
    def bad_episodes(self) -> Mapping[str, Mapping[str, int]]:
        """Dataset -> kind of fault -> episodes left out so far."""
        ...

    @property
    def left_out(self) -> Mapping[str, Mapping[str, int]]:
        """Dataset -> kind -> episodes or frames that its row leaves out; these are not bad."""
        ...


class Fed(NamedTuple):
    """A batch on the device."""

    batch: dict[str, jax.Array]
    position: Mapping[str, Any]  # of the source, behind this batch
    samples: Sequence[str]  # what each row of this process is: dataset, episode, frame

    @property
    def rows(self) -> int:
        """Samples in the part of this process."""
        return len(self.samples)


class DeviceFeed(Iterator[Fed]):
    """Batches of a source on the mesh, one ahead of the training loop.

    Use as a context manager. The first batch is checked against the model.

    Attributes:
        waited_s: seconds that the last ``next`` had to wait.
    """

    def __init__(
        self, source: BatchSource, mesh: Mesh, config: XVLAConfig, *, present_views: int
    ) -> None:
        """Begins to place the first batch; view slots from ``present_views`` on are left out."""
        self.waited_s = 0.0
        self._source = source
        self._mesh = mesh
        self._config = config
        self._present_views = present_views
        self._checked = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: Future[Fed] = self._pool.submit(self._place)

    def __next__(self) -> Fed:
        """The next batch.

        Raises:
            InputError: the first batch does not fit the model.
        """
        began = time.monotonic()
        fed = self._ahead.result()
        self._ahead = self._pool.submit(self._place)
        self.waited_s = time.monotonic() - began
        return fed

    def _place(self) -> Fed:
        batch = next(self._source)
        position = self._source.position
        if not self._checked:
            check_batch(batch, self._config)
            self._checked = True
        shown = {k: batch[k][:, : self._present_views] for k in IMAGE_FIELDS if k in batch}
        present = global_batch(dict(batch) | shown, self._mesh)
        return Fed(present, position, self._source.samples)

    def __enter__(self) -> DeviceFeed:
        """For ``with``."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the thread; a batch placed ahead is lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)
