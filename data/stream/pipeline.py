"""Sources -> batches (door 1; the fields are in data/stream/batches.py).

The global stream of samples is a function of the seed, the sources, `batch_size`, `shuffle_buffer`
and `lanes`: which source position p takes, which of its samples, in which order. Batch k holds the
positions k * batch_size and following, so any step can be entered directly, on any number of hosts.

A lane is a stretch of rows that is fed from files of its own. A host reads the lanes of its rows
only, so with as many lanes as hosts (or a multiple) nothing is read twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.faults import Faults
from data.images import Fit, UInt8, load_image
from data.jitter import any_drawn
from data.poses import ACTION_WIDTH
from data.stream.batches import Batch, Batches, BatchMaker, Collator, Tokenize, rows_of_host
from data.stream.stream import Sample, StreamShape, good_trajectories
from data.stream.windows import episode_samples
from data.trajectory import Reader


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
    lanes: int = 1,
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
        max_bad_episodes: left out of each source; one more is a `TooManyBadEpisodesError`.
        start_step: the first batch. Nothing before it is decoded.
        position: a saved one, in place of `start_step`.
        host: of `hosts`; it gets the rows host * batch_size / hosts and following.
        hosts: how many share a global batch.
        prefetch: batches made ahead.
        threads: as many read files, and as many decode images; None takes one per core.
        cache_mb: for decoded images, so that later epochs of a small dataset decode none.
        fit: resizes images, in place of the bicubic filter.
        action_width: channels of the model's head (D); rows with fewer are padded with zeros.

    Raises:
        ValueError: an argument out of range, or a position of another stream.
    """
    _check_at_least(1, batch_size=batch_size, shuffle_buffer=shuffle_buffer, prefetch=prefetch)
    _check_at_least(0, start_step=start_step, cache_mb=cache_mb, max_bad_episodes=max_bad_episodes)
    faults, threads = Faults(max_bad_episodes), threads or os.cpu_count() or 1
    drawing = (seed, faults, cache_mb, threads)
    pairs = [(source.reader, source.weight) for source in sources]
    shape = StreamShape(seed, batch_size, num_actions, shuffle_buffer, lanes)
    collate = _collator(sources, num_views, image_size, tokenize, *drawing, fit, action_width)
    rows = rows_of_host(host, hosts, batch_size)
    place: dict[str, Any] = {"start_step": start_step, "position": position}
    maker = BatchMaker(pairs, shape, collate, faults, rows=rows, threads=threads, **place)
    return Batches(maker, prefetch=prefetch)


def _collator(
    sources: Sequence[Source],
    num_views: int,
    image_size: int,
    tokenize: Tokenize,
    seed: int | None,
    faults: Faults,
    cache_mb: float,
    threads: int,
    fit: Fit | None,
    action_width: int,
) -> Collator:
    _check_sources(sources, num_views, action_width)
    drawing = (seed, faults, cache_mb, threads, _jitters(sources))
    return Collator(num_views, image_size, tokenize, *drawing, fit, action_width)


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
) -> Iterator[Batch]:
    """Every sample once, in the order stored, source after source; the last batch may be short.

    With a `stride`, every so many samples of an episode. Nothing is drawn: no jitter, no
    paraphrase, all views. Bad episodes are left out up to the bound; a sample whose images are
    bad has none to take its place, and is an error.
    """
    _check_at_least(1, batch_size=batch_size, stride=stride)
    faults = Faults(max_bad_episodes)
    threads = threads or os.cpu_count() or 1
    drawing = (None, faults, 0.0, threads)
    collator = _collator(sources, num_views, image_size, tokenize, *drawing, fit, action_width)
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


def _jitters(sources: Sequence[Source]) -> bool:
    return any_drawn(source.reader.spec.augment for source in sources)


def _check_sources(sources: Sequence[Source], num_views: int, action_width: int) -> None:
    names = [source.reader.spec.name for source in sources]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a mixture names each dataset once and at least one, got {names}")
    for source in sources:
        views, width = source.reader.spec.views, source.reader.spec.width
        if width > action_width:
            raise ValueError(
                f"dataset {source.reader.spec.name!r} has {width} channels of actions, the model's "
                f"head has {action_width} (action_width)"
            )
        if len(views) > num_views:
            raise ValueError(
                f"dataset {source.reader.spec.name!r} has {len(views)} views, the model has "
                f"{num_views} slots (num_views)"
            )


def _check_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; it must be {least} or more")


_PER_EPISODE = 4


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        name: dataset, episode and frame.
        images: decoded, as large as recorded, uint8[H, W, 3] RGB, of each view.
        instruction: as recorded.
        batch: of one sample, nothing augmented; fields as in data/stream/batches.py.
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
) -> Iterator[Frame]:
    """The first `count` of four frames of each episode, spread over it; fewer where there are none.

    Raises:
        BadEpisodeError: an episode or an image cannot be used.
    """
    collator = Collator(
        num_views, image_size, tokenize, None, Faults(0), 0.0, threads=1, jitters=False, fit=fit
    )
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
            spread = np.linspace(0, len(samples) - 1, min(_PER_EPISODE, len(samples)), dtype=int)
            for row in spread[:left].tolist():
                yield Sample(spec, samples, row, row, lane=0)
                left -= 1
            if left <= 0:
                return


def _native(sample: Sample) -> tuple[UInt8, ...]:
    order = sample.spec.encoded_channel_order
    return tuple(
        load_image(images[sample.row], size=None, channel_order=order)
        for images in sample.episode.images
    )
