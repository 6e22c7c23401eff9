"""Sources -> batches (door 1; the fields are in data/collate.py).

The global stream of samples is a function of the seed, the sources and `shuffle_buffer` alone:
which source position p takes, which of its samples, in which order. Batch k holds the positions
k * batch_size and following, so any step can be entered directly, on any number of hosts.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from data.collate import Batch, Collator, Tokenize
from data.sampling import Mixer
from data.stream import Sample, SourceStream
from data.trajectory import Reader
from data.windows import episode_samples

POSITION_VERSION = 1


@dataclass(frozen=True)
class Source:
    """An opened dataset and its share of the samples."""

    reader: Reader
    weight: float


def batches(
    sources: Sequence[Source],
    *,
    batch_size: int,
    num_actions: int,
    num_views: int,
    image_size: int,
    tokenize: Tokenize,
    seed: int,
    shuffle_buffer: int,
    start_step: int = 0,
    position: Mapping[str, Any] | None = None,
    host: int = 0,
    hosts: int = 1,
    prefetch: int = 2,
    decode_threads: int | None = None,
    cache_mb: float = 0.0,
) -> Batches:
    """Endless training batches, from batch number `start_step` on.

    Args:
        sources: the mixture; every dataset repeats for ever, each at its own pace.
        batch_size: samples in the global batch.
        num_actions: actions of a chunk (T).
        num_views: camera slots (V); a dataset with fewer views leaves the last ones empty.
        image_size: side of the pictures (S).
        tokenize: list of n instructions -> int32[n, L].
        seed: decides the stream.
        shuffle_buffer: samples over which each source is shuffled at least (data/stream.py).
        start_step: the first batch. Nothing before it is decoded.
        position: what `Batches.position` gave; replaces `start_step`, checks that the stream is
            the same, and spares counting the samples before it.
        host: this host's number; it gets the rows host * batch_size / hosts and following.
        hosts: how many hosts share a global batch.
        prefetch: batches made ahead.
        decode_threads: threads that decode pictures; None takes one per core.
        cache_mb: memory for decoded pictures, so that later epochs of a small dataset decode none.

    Raises:
        ValueError: an argument out of range, or a position of another stream.
    """
    _check_sources(sources, num_views)
    _check_at_least(1, batch_size=batch_size, shuffle_buffer=shuffle_buffer, prefetch=prefetch)
    _check_at_least(0, start_step=start_step, cache_mb=cache_mb)
    if not 0 <= host < hosts or batch_size % hosts:
        raise ValueError(f"host {host} of {hosts} cannot share a batch of {batch_size} equally")
    identity = _identity(sources, seed, batch_size, num_actions, shuffle_buffer)
    if position is not None:
        _check_same_stream(identity, position["stream"])
        start_step = position["step"]
    mixer = Mixer([source.weight for source in sources], seed)
    counts = position["samples_per_part"] if position else {}
    firsts = mixer.seek(start_step * batch_size).tolist()
    streams = _open_streams(sources, firsts, counts, seed, shuffle_buffer, num_actions)
    threads = decode_threads or os.cpu_count() or 1
    collator = Collator(
        num_views, image_size, tokenize, seed=seed, cache_mb=cache_mb, threads=threads
    )
    rows = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
    return Batches(identity, streams, mixer, collator, rows, step=start_step, prefetch=prefetch)


class Batches(Iterator[Batch]):
    """Iterator over batches, made ahead in a thread. Use as a context manager, or `close` it.

    Attributes:
        step: number of the batch that comes next.
        waited_s: seconds that the last `next` had to wait.
    """

    def __init__(
        self,
        identity: dict[str, Any],
        streams: Sequence[SourceStream],
        mixer: Mixer,
        collator: Collator,
        rows: slice,
        *,
        step: int,
        prefetch: int,
    ) -> None:
        self.step = step
        self.waited_s = 0.0
        self._identity = identity
        self._streams = streams
        self._mixer = mixer
        self._collator = collator
        self._rows = rows
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: deque[Future[Batch]] = deque(
            self._pool.submit(self._make) for _ in range(prefetch)
        )

    def __next__(self) -> Batch:
        began = time.monotonic()
        # taken off only when it is there: Ctrl-C loses no batch, and an error stays an error
        batch = self._ahead[0].result()
        self._ahead.popleft()
        self._ahead.append(self._pool.submit(self._make))
        self.step += 1
        self.waited_s = time.monotonic() - began
        return batch

    @property
    def position(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON values; hand it to `batches` to go on there."""
        return {
            "step": self.step,
            "stream": self._identity,
            "samples_per_part": {s.spec.name: list(s.samples_per_part) for s in self._streams},
        }

    def close(self) -> None:
        """End all threads; batches not taken are lost."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for part in (*self._streams, self._collator):
            part.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make(self) -> Batch:
        chosen, numbers = self._mixer.assign(self._identity["batch_size"])
        return self._collator(
            [
                self._streams[source].sample(number)
                for source, number in zip(
                    chosen[self._rows].tolist(), numbers[self._rows].tolist(), strict=True
                )
            ]
        )


def one_pass(
    sources: Sequence[Source],
    *,
    batch_size: int,
    num_actions: int,
    num_views: int,
    image_size: int,
    tokenize: Tokenize,
    decode_threads: int | None = None,
) -> Iterator[Batch]:
    """Every sample once, in the order stored, source after source; the last batch may be short.

    Nothing is drawn: no jitter, no paraphrase, all views.
    """
    _check_sources(sources, num_views)
    _check_at_least(1, batch_size=batch_size)
    threads = decode_threads or os.cpu_count() or 1
    collator = Collator(num_views, image_size, tokenize, seed=None, cache_mb=0.0, threads=threads)
    waiting: list[Sample] = []
    try:
        for sample in _samples_in_order(sources, num_actions):
            waiting.append(sample)
            if len(waiting) == batch_size:
                yield collator(waiting)
                waiting = []
        if waiting:
            yield collator(waiting)
    finally:
        collator.close()


def _samples_in_order(sources: Sequence[Source], num_actions: int) -> Iterator[Sample]:
    for source in sources:
        spec = source.reader.spec
        for part in range(len(source.reader.episodes_per_part)):
            for trajectory in source.reader.read(part):
                samples = episode_samples(trajectory, spec, num_actions)
                yield from (Sample(spec, samples, row, row) for row in range(len(samples)))


def _open_streams(
    sources: Sequence[Source],
    firsts: Sequence[int],
    counts: Mapping[str, list[int | None]],
    seed: int,
    shuffle_buffer: int,
    num_actions: int,
) -> list[SourceStream]:
    return [
        SourceStream(
            source.reader,
            seed=seed,
            shuffle_buffer=shuffle_buffer,
            num_actions=num_actions,
            first=first,
            samples_per_part=counts.get(source.reader.spec.name),
        )
        for source, first in zip(sources, firsts, strict=True)
    ]


def _identity(
    sources: Sequence[Source], seed: int, batch_size: int, num_actions: int, shuffle_buffer: int
) -> dict[str, Any]:
    """What has to be equal for two streams to be the same."""
    return {
        "version": POSITION_VERSION,
        "seed": seed,
        "batch_size": batch_size,
        "num_actions": num_actions,
        "shuffle_buffer": shuffle_buffer,
        "sources": [
            {
                "name": source.reader.spec.name,
                "weight": source.weight,
                "episodes": sum(source.reader.episodes_per_part),
            }
            for source in sources
        ],
    }


def _check_same_stream(ours: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    different = [
        f"{key}: {saved.get(key)} saved, {value} now"
        for key, value in ours.items()
        if saved.get(key) != value
    ]
    if different:
        raise ValueError(
            "the saved data position belongs to another stream; " + "; ".join(different)
        )


def _check_sources(sources: Sequence[Source], num_views: int) -> None:
    names = [source.reader.spec.name for source in sources]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a mixture names each dataset once and at least one, got {names}")
    for source in sources:
        views = source.reader.spec.views
        if len(views) > num_views:
            raise ValueError(
                f"dataset {source.reader.spec.name!r} has {len(views)} views, the model has "
                f"{num_views} slots (num_views)"
            )


def _check_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; it must be {least} or more")
