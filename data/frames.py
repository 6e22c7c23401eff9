"""Recorded frames in two forms: as a robot's client would hold them, and as training has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.collate import Batch, Collator, Tokenize
from data.faults import Faults
from data.images import Fit, UInt8, load_picture
from data.stream.pipeline import Source
from data.stream.stream import Sample
from data.stream.windows import episode_samples

_PER_EPISODE = 4


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        name: dataset, episode and frame.
        images: decoded, as large as recorded, uint8[H, W, 3] RGB, of each view.
        instruction: as recorded.
        batch: of one sample, nothing augmented; fields as in data/collate.py.
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
        BadEpisodeError: an episode or a picture cannot be used.
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
        load_picture(pictures[sample.row], size=None, channel_order=order)
        for pictures in sample.episode.images
    )
