"""Batches made ahead in a thread, and the position behind each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from data.collate import Batch, Collator
from data.faults import Faults
from data.sampling import Mixer
from data.stream.position import check_position, cursors_of, position_of, stream_identity
from data.stream.stream import Counts, Cursor, SourceStream, StreamShape
from data.trajectory import Reader

Cursors = list[tuple[str, int, Cursor]]  # dataset, lane, cursor


class Made(NamedTuple):
    """A batch, its samples, and where its streams stand behind it."""

    batch: Batch
    samples: list[str]
    cursors: Cursors


def rows_of_host(host: int, hosts: int, batch_size: int) -> slice:
    """The rows of a global batch that a host makes."""
    if not 0 <= host < hosts or batch_size % hosts:
        raise ValueError(f"host {host} of {hosts} cannot share a batch of {batch_size} equally")
    return slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)


class BatchMaker:
    """Makes one batch after the other: this host's rows of the global ones."""

    def __init__(
        self,
        sources: Sequence[tuple[Reader, float]],
        shape: StreamShape,
        collator: Collator,
        faults: Faults,
        *,
        rows: slice,
        start_step: int,
        position: Mapping[str, Any] | None,
        threads: int,
    ) -> None:
        """Begins to read at `start_step`, or at a position (data/stream/position.py) in its place.

        Raises:
            ValueError: the position is of another stream, or lanes do not divide the batch.
        """
        self.faults = faults
        self.identity = stream_identity(sources, shape)
        if position is not None:
            check_position(position, self.identity)
        self.step: int = start_step if position is None else position["step"]
        weights = [weight for _, weight in sources]
        self._mixer = Mixer(weights, shape.seed, batch_size=shape.batch_size, lanes=shape.lanes)
        self._mixer.seek(self.step * shape.batch_size)
        firsts = self._mixer.dealt
        self._collator = collator
        self._rows = rows
        self._lanes = [
            row * shape.lanes // shape.batch_size for row in range(rows.start, rows.stop)
        ]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._streams: dict[tuple[int, int], SourceStream] = {}
        for number, (reader, _) in enumerate(sources):
            cursors = cursors_of(position, reader.spec.name, shape.lanes)
            counts = Counts(len(reader.episodes_per_part))
            for lane in sorted(set(self._lanes)):
                self._streams[number, lane] = SourceStream(
                    reader,
                    shape,
                    lane,
                    pool=self._pool,
                    faults=faults,
                    counts=counts,
                    first=int(firsts[number, lane]),
                    cursor=cursors[lane],
                )

    def __call__(self) -> Made:
        """The next batch."""
        chosen, numbers = self._mixer.assign(self.identity["batch_size"])
        mine = zip(
            chosen[self._rows].tolist(), self._lanes, numbers[self._rows].tolist(), strict=True
        )
        draws = [self._streams[source, lane].block(n).from_here(n) for source, lane, n in mine]
        batch, samples = self._collator(draws)
        return Made(batch, [str(sample) for sample in samples], self.cursors())

    def cursors(self) -> Cursors:
        """Where the streams stand."""
        return [(s.spec.name, s.lane, s.cursor) for s in self._streams.values()]

    def close(self) -> None:
        """Read nothing more, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._collator.close()


class Batches(Iterator[Batch]):
    """Iterator over batches. Use as a context manager, or `close` it.

    Attributes:
        step: number of the batch that comes next.
        samples: dataset, episode and frame of each row of the last batch.
        waited_s: seconds that the last `next` had to wait.
    """

    def __init__(self, maker: BatchMaker, *, prefetch: int) -> None:
        """Begins to make `prefetch` batches."""
        self.step = maker.step
        self.waited_s = 0.0
        self.samples: list[str] = []
        self._maker = maker
        self._cursors = maker.cursors()
        self._making = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: deque[Future[Made]] = deque(
            self._making.submit(maker) for _ in range(prefetch)
        )

    def __next__(self) -> Batch:
        began = time.monotonic()
        # taken off only when it is there: Ctrl-C loses no batch, and an error stays an error
        batch, self.samples, self._cursors = self._ahead[0].result()
        self._ahead.popleft()
        self._ahead.append(self._making.submit(self._maker))
        self.step += 1
        self.waited_s = time.monotonic() - began
        return batch

    @property
    def position(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON values; hand it to `batches` to go on there.

        It has the cursors of this host's lanes only; `data.stream.position.merge_positions` joins hosts.
        """
        return position_of(self._maker.identity, self.step, self._cursors)

    @property
    def bad_episodes(self) -> dict[str, dict[str, int]]:
        """Dataset -> kind of fault -> episodes left out, or with pictures left out, so far."""
        return self._maker.faults.counts

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """Dataset -> kind -> episodes (or frames) that its row leaves out, so far; not bad ones."""
        return self._maker.faults.left_out

    def close(self) -> None:
        """End all threads; batches not taken are lost."""
        self._making.shutdown(wait=True, cancel_futures=True)
        self._maker.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
