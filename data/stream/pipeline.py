"""Opened sources -> batches: the endless stream of training, one pass of validation, single frames.

The way of a sample: a reader yields trajectories (data/trajectory.py), windows.py cuts samples out
of them, stream.py puts the samples of a source in order, this module deals the rows of a batch to
sources and lanes, and batches.py decodes and stacks them.

The global stream is a function of the seed, the sources, `batch_size`, `shuffle_buffer` and
`lanes`: position p has one source, and one of its samples. Batch k holds the positions from
k * batch_size on, so any step can be entered directly, on any number of hosts.

A lane is a stretch of rows that is fed from files of its own. A host reads the lanes of its rows
only, so with as many lanes as hosts (or a multiple) no file is read twice.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from data.faults import Faults
from data.images import Fit, UInt8, load_image
from data.jitter import any_drawn
from data.poses.rotations import ACTION_WIDTH
from data.rows.domains import resolve_domains
from data.sampling import DEALS
from data.stream.batches import Batch, BatchForm, Collator, Tokenize
from data.stream.position import check_position, cursors_of, position_of, stream_identity
from data.stream.stream import (
    SHUFFLE_PER,
    Counts,
    Cursor,
    Sample,
    SourceStream,
    StreamShape,
    check_at_least,
    good_trajectories,
)
from data.stream.windows import episode_samples
from data.trajectory import Source

FRAMES_PER_EPISODE = 4  # that `recorded_frames` shows


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
    lanes: int = 1,
    shuffle_per: str = SHUFFLE_PER[0],
    deal: str = DEALS[0],
    max_bad_episodes: int = 0,
    start_step: int = 0,
    position: Mapping[str, Any] | None = None,
    host: int = 0,
    hosts: int = 1,
    prefetch: int = 2,
    threads: int | None = None,
    cache_mb: float = 0.0,
    fit: Fit | None = None,
    action_width: int = ACTION_WIDTH,
    domains: Mapping[str, int] | None = None,
) -> Batches:
    """Endless training batches, from batch number `start_step` on.

    Args:
        sources: the mixture; every dataset repeats for ever, each at its own pace.
        batch_size: samples in the global batch.
        num_actions: actions of a chunk (T).
        num_views: camera slots (V); a dataset with fewer views leaves the last ones empty.
        image_size: side of the images (S).
        tokenize: list of n instructions -> int32[n, L].
        seed: decides the stream.
        shuffle_buffer: samples over which each source is shuffled at least (data/stream/stream.py).
        lanes: stretches of rows that read files of their own; divides `batch_size`.
        shuffle_per: "source", or "mixture" where all sources share `shuffle_buffer`.
        deal: of rows to sources, "independent" or "even" (`Mixer`).
        max_bad_episodes: skipped in each source; one more raises `TooManyBadEpisodesError`.
        start_step: the first batch. Nothing before it is decoded.
        position: a saved one, in place of `start_step`; the form of the batches may be another.
        host: of `hosts`; it gets the rows from host * batch_size / hosts on.
        hosts: how many share a global batch.
        prefetch: batches made ahead.
        threads: as many read files, and as many decode images; None takes one per core.
        cache_mb: for decoded images, so that later epochs of a small dataset decode none.
        fit: resizes images, in place of the bicubic filter.
        action_width: channels of the model's head (D); rows with fewer are padded with zeros.
        domains: ids of domains by name (data/rows/domains.py); None resolves those of `sources`.

    Raises:
        ValueError: an argument out of range, or a position of another stream.
    """
    form = BatchForm(num_views, image_size, tokenize, fit, action_width, domains)
    shape = StreamShape(seed, batch_size, num_actions, shuffle_buffer, lanes, shuffle_per, deal)
    start = start_step if position is None else position
    work = {"rows": _rows_of_host(host, hosts, batch_size), "start": start, "threads": threads}
    maker = BatchMaker(sources, shape, form, Faults(max_bad_episodes), cache_mb=cache_mb, **work)
    return Batches(maker, prefetch=prefetch)


class Batches(Iterator[Batch]):
    """Iterator over batches, made ahead in a thread. Use as a context manager, or `close` it.

    Attributes:
        step: number of the batch that comes next.
        samples: dataset, episode and frame of each row of the last batch.
        waited_s: seconds that the last `next` had to wait.
    """

    def __init__(self, maker: BatchMaker, *, prefetch: int) -> None:
        """Starts to make `prefetch` batches."""
        check_at_least(1, prefetch=prefetch)
        self.step = maker.step
        self.waited_s = 0.0
        self.samples: list[str] = []
        self._maker = maker
        # of the last batch taken: batches made ahead do not count for the position
        self._cursors = maker.cursors()
        # one thread: batches are made in order, each from where the streams stood after the last
        self._making = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: deque[Future[Made]] = deque(
            self._making.submit(maker) for _ in range(prefetch)
        )

    def __next__(self) -> Batch:
        began = time.monotonic()
        # taken off only once it is there: Ctrl-C loses no batch, and a failed one fails again
        batch, self.samples, self._cursors = self._ahead[0].result()
        self._ahead.popleft()
        self._ahead.append(self._making.submit(self._maker))
        self.step += 1
        self.waited_s = time.monotonic() - began
        return batch

    @property
    def position(self) -> dict[str, Any]:
        """Position behind the last batch, as plain JSON values; `batches` continues from it.

        It has the cursors of this host's lanes only; `merge_positions` (position.py) joins hosts.
        """
        return position_of(self._maker.identity, self.step, self._cursors)

    @property
    def bad_episodes(self) -> dict[str, dict[str, int]]:
        """Dataset -> kind of fault -> episodes left out, or with images left out, so far."""
        return self._maker.faults.counts

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """Dataset -> kind -> episodes (or frames) that its row leaves out, so far; not bad ones."""
        return self._maker.faults.left_out

    def close(self) -> None:
        """Ends all threads; batches not taken are lost."""
        self._making.shutdown(wait=True, cancel_futures=True)
        self._maker.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Made(NamedTuple):
    """A batch, its samples, and where its streams stand behind it."""

    batch: Batch
    samples: list[str]
    cursors: list[tuple[str, int, Cursor]]  # dataset, lane, cursor


class BatchMaker:
    """Makes one batch after the other: this host's rows of the global ones."""

    def __init__(
        self,
        sources: Sequence[Source],
        shape: StreamShape,
        form: BatchForm,
        faults: Faults,
        *,
        rows: slice,
        start: int | Mapping[str, Any],
        threads: int | None,
        cache_mb: float,
    ) -> None:
        """Starts to read at a step, or at a saved position (position.py).

        Raises:
            ValueError: the position is of another stream, or lanes do not divide the batch.
        """
        start_step: int = start if isinstance(start, int) else start["step"]
        check_at_least(0, start_step=start_step, cache_mb=cache_mb)
        threads = threads or os.cpu_count() or 1
        self.faults = faults
        self._collator = _collator(
            sources, form, faults, seed=shape.seed, cache_mb=cache_mb, threads=threads
        )
        self.identity = stream_identity(sources, shape)
        position = None if isinstance(start, int) else start
        if position is not None:
            check_position(position, self.identity)
        self.step = start_step
        # the mixer deals all positions of the run, of all hosts; seek draws those before this step
        weights = [source.weight for source in sources]
        self._mixer = shape.mixer(weights, [len(source.reader.spec.views) for source in sources])
        self._mixer.seek(self.step * shape.batch_size)
        firsts = self._mixer.dealt  # [sources, lanes]: samples that earlier batches took
        self._rows = rows
        self._lanes = [
            row * shape.lanes // shape.batch_size for row in range(rows.start, rows.stop)
        ]
        # a stream for each source and lane of this host: lanes of other hosts are never read
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._streams: dict[tuple[int, int], SourceStream] = {}
        for number, source in enumerate(sources):
            cursors = cursors_of(position, source.reader.spec.name, shape.lanes)
            counts = Counts(len(source.reader.episodes_per_part))
            own_shape = shape.of_source(source.weight / sum(weights))
            for lane in sorted(set(self._lanes)):
                self._streams[number, lane] = SourceStream(
                    source.reader,
                    own_shape,
                    lane,
                    pool=self._pool,
                    faults=faults,
                    counts=counts,
                    first=int(firsts[number, lane]),
                    cursor=cursors[lane],
                )

    def __call__(self) -> Made:
        """Makes the next batch."""
        # dealt for the global batch, whatever this host makes: so all hosts stay in step
        chosen, numbers = self._mixer.assign(self.identity["batch_size"])
        mine = zip(
            chosen[self._rows].tolist(), self._lanes, numbers[self._rows].tolist(), strict=True
        )
        # block() may wait for a reader; from_here() also offers the samples that may take the place
        draws = [self._streams[source, lane].block(n).from_here(n) for source, lane, n in mine]
        batch, samples = self._collator(draws)
        return Made(batch, [str(sample) for sample in samples], self.cursors())

    def cursors(self) -> list[tuple[str, int, Cursor]]:
        """Dataset, lane and cursor of each stream."""
        return [(s.spec.name, s.lane, s.cursor) for s in self._streams.values()]

    def close(self) -> None:
        """Stops reading and ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._collator.close()


def one_pass(
    sources: Sequence[Source],
    *,
    batch_size: int,
    num_actions: int,
    num_views: int,
    image_size: int,
    tokenize: Tokenize,
    stride: int = 1,
    max_bad_episodes: int = 0,
    threads: int | None = None,
    fit: Fit | None = None,
    action_width: int = ACTION_WIDTH,
    domains: Mapping[str, int] | None = None,
    masked: bool = False,
) -> Iterator[Batch]:
    """Every sample once, in the order stored, source after source; the last batch may be short.

    With a `stride`, every so many samples of an episode. Nothing is drawn: no jitter, no
    paraphrase, all views. Bad episodes are skipped up to the limit; a sample whose images are bad
    raises `BadEpisodeError`, because no other may take its place. With `masked` there is a channel
    mask also where these sources record all channels, as in the batches of a mixture that does not.
    """
    check_at_least(1, batch_size=batch_size, stride=stride)
    faults = Faults(max_bad_episodes)
    form = BatchForm(num_views, image_size, tokenize, fit, action_width, domains)
    threads = threads or os.cpu_count() or 1
    collator = _collator(sources, form, faults, threads=threads, masked=masked)
    # draws of one sample each: none may stand in for another
    waiting: list[Iterator[Sample]] = []
    try:
        for sample in _samples_in_order(sources, num_actions, stride, faults):
            waiting.append(iter((sample,)))
            if len(waiting) == batch_size:
                yield collator(waiting)[0]
                waiting = []
        if waiting:
            yield collator(waiting)[0]
    finally:
        collator.close()


def _samples_in_order(
    sources: Sequence[Source], num_actions: int, stride: int, faults: Faults
) -> Iterator[Sample]:
    for source in sources:
        spec = source.reader.spec
        for part in range(len(source.reader.episodes_per_part)):
            for trajectory in good_trajectories(source.reader, part, faults):
                samples = episode_samples(trajectory, spec, num_actions)
                rows = range(0, len(samples), stride)
                yield from (Sample(spec, samples, row, row, lane=0) for row in rows)


@dataclass(frozen=True)
class Frame:
    """One recorded frame, as recorded and as the model would train on it.

    Attributes:
        name: dataset, episode and frame.
        images: decoded, as large as recorded, uint8[H, W, 3] RGB, of each view.
        instruction: as recorded.
        batch: of one sample, nothing augmented; proprio and actions as wide as the row's.
    """

    name: str
    images: tuple[UInt8, ...]
    instruction: str
    batch: Batch


def recorded_frames(
    source: Source,
    *,
    count: int,
    num_actions: int,
    num_views: int,
    image_size: int,
    tokenize: Tokenize,
    fit: Fit | None = None,
    domains: Mapping[str, int] | None = None,
) -> Iterator[Frame]:
    """The first `count` frames, four of each episode spread over it; fewer where there are none.

    `domains` has ids of domains by name, of the model that is to act on the frames.

    Raises:
        BadEpisodeError: an episode or an image cannot be used.
    """
    # as wide as the row: a policy of 14 joints takes 14 numbers from its robot, not 20
    spec = source.reader.spec
    ids = resolve_domains([spec]) if domains is None else domains
    form = BatchForm(num_views, image_size, tokenize, fit, spec.width, ids)
    collator = Collator(form, faults=Faults(0))
    try:
        for sample in _spread(source, count, num_actions):
            batch, _ = collator([iter((sample,))])
            yield Frame(str(sample), _native(sample), sample.episode.text(sample.row)[0], batch)
    finally:
        collator.close()


def _spread(source: Source, count: int, num_actions: int) -> Iterator[Sample]:
    spec, left = source.reader.spec, count
    for part in range(len(source.reader.episodes_per_part)):
        for trajectory in Faults(0).sift(source.reader.read(part)):
            samples = episode_samples(trajectory, spec, num_actions)
            if not len(samples):
                continue
            # first and last sample, and two between
            shown = min(FRAMES_PER_EPISODE, len(samples))
            rows = np.linspace(0, len(samples) - 1, shown, dtype=int)
            for row in rows[:left].tolist():
                yield Sample(spec, samples, row, row, lane=0)
                left -= 1
            if left <= 0:
                return


def _native(sample: Sample) -> tuple[UInt8, ...]:
    return tuple(
        load_image(
            images[sample.row],
            size=None,
            channel_order=sample.spec.channel_order_of(view),
            turn=sample.spec.views[view].turn,
        )
        for view, images in zip(sample.episode.view_numbers, sample.episode.images, strict=True)
    )


def _collator(
    sources: Sequence[Source],
    form: BatchForm,
    faults: Faults,
    *,
    seed: int | None = None,
    cache_mb: float = 0.0,
    threads: int,
    masked: bool = False,
) -> Collator:
    """The collator of a mixture, whose rows must fit into the batches."""
    specs = [source.reader.spec for source in sources]
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a mixture names each dataset once and at least one, got {names}")
    for spec in specs:
        if spec.width > form.action_width:
            raise ValueError(
                f"dataset {spec.name!r} has {spec.width} channels of actions, the model's "
                f"head has {form.action_width} (action_width)"
            )
        if len(spec.views) > form.num_views:
            raise ValueError(
                f"dataset {spec.name!r} has {len(spec.views)} views, the model has "
                f"{form.num_views} slots (num_views)"
            )
    # one signature for all batches of a mixture, or the train step would be compiled twice
    jitters = any_drawn(spec.augment for spec in specs)
    masked = masked or any(spec.unrecorded for spec in specs)
    if form.domains is None:
        form = replace(form, domains=resolve_domains(specs))
    options = {"seed": seed, "cache_mb": cache_mb, "threads": threads}
    return Collator(form, faults=faults, jitters=jitters, masked=masked, **options)


def _rows_of_host(host: int, hosts: int, batch_size: int) -> slice:
    """The rows of a global batch that a host makes."""
    if not 0 <= host < hosts or batch_size % hosts:
        raise ValueError(f"host {host} of {hosts} cannot share a batch of {batch_size} equally")
    return slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
