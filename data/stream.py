"""The endless, exactly repeatable sample stream of one source.

An epoch visits the parts (files) in a random order and gathers them into *blocks* of at least
`shuffle_buffer` samples; within a block the samples come in random order. A dataset smaller than
that is one block: a plain shuffle without replacement. Both orders are functions of the seed, so
sample number n is found again by counting samples, without decoding a picture. Reading stays
sequential, as TFRecord files want it.

Host memory: the block in use and the next one, encoded. Per sample that is its pictures plus
4 * D * (T + 1) bytes; the largest block holds shuffle_buffer samples plus one file. Pictures that
are files or frames of a video stay where they are until their sample is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.sampling import Int64, permutation
from data.spec import DatasetSpec
from data.trajectory import Reader
from data.windows import EpisodeSamples, episode_samples, num_samples


class EmptyDatasetError(ValueError):
    """A dataset that yields no sample in a whole pass."""


class Sample(NamedTuple):
    """Row `row` of the samples of one episode."""

    spec: DatasetSpec
    episode: EpisodeSamples
    row: int
    number: int  # in the stream of its source; what is drawn for it follows from this


@dataclass(frozen=True)
class Block:
    """Samples number start .. end - 1 of the stream, and the parts that hold them."""

    epoch: int
    number: int  # within the epoch
    parts: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class LoadedBlock:
    """A block in memory."""

    block: Block
    spec: DatasetSpec
    episodes: tuple[EpisodeSamples, ...]
    ends: Int64  # [episodes] samples up to and including each
    order: Int64  # [samples]

    def sample(self, number: int) -> Sample:
        """Sample `number` of the stream, which lies in this block."""
        flat = int(self.order[number - self.block.start])
        place = int(np.searchsorted(self.ends, flat, side="right"))
        episode = self.episodes[place]
        return Sample(self.spec, episode, flat - int(self.ends[place]) + len(episode), number)


class SourceStream:
    """Samples by number, asked for in rising order; the next block is read ahead in a thread.

    `samples_per_part` (None = not known yet) fills as parts are read. Handing it over again on
    resume spares reading the parts before `first`.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        seed: int,
        shuffle_buffer: int,
        num_actions: int,
        first: int = 0,
        samples_per_part: Sequence[int | None] | None = None,
    ) -> None:
        self.spec = reader.spec
        self._reader = reader
        self._seed = seed
        self._shuffle_buffer = shuffle_buffer
        self._num_actions = num_actions
        num_parts = len(reader.episodes_per_part)
        self.samples_per_part: list[int | None] = list(samples_per_part or [None] * num_parts)
        self._first = first
        self._in_memory: dict[int, tuple[EpisodeSamples, ...]] = {}
        self._blocks = self._load_from(first)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"read-{self.spec.name}")
        self._next: Future[LoadedBlock] = self._pool.submit(next, self._blocks)
        self._current: LoadedBlock | None = None

    def sample(self, number: int) -> Sample:
        """Sample `number`, not before those asked for earlier.

        Raises:
            EmptyDatasetError: a whole pass gave no sample.
            BadEpisodeError: an episode of the block cannot be used.
        """
        while self._current is None or number >= self._current.block.end:
            self._current = self._next.result()
            self._next = self._pool.submit(next, self._blocks)
        return self._current.sample(number)

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load_from(self, first: int) -> Iterator[LoadedBlock]:
        for block in self._walk(first):
            # counting may have read parts of blocks that are only passed over
            kept = set(block.parts) & set(self._in_memory)
            self._in_memory = {part: self._in_memory[part] for part in kept}
            if block.end <= first:
                continue
            episodes = tuple(e for part in sorted(block.parts) for e in self._part(part))
            purpose = (self.spec.name, "samples", block.epoch, block.number)
            order = permutation(block.end - block.start, self._seed, *purpose)
            ends = np.cumsum([len(episode) for episode in episodes])
            yield LoadedBlock(block, self.spec, episodes, ends, order)

    def _walk(self, first: int) -> Iterator[Block]:
        """All blocks from an epoch that begins at or before sample `first`."""
        epoch = start = 0
        while True:
            known = [count for count in self.samples_per_part if count is not None]
            if len(known) == len(self.samples_per_part):
                self._require_samples(sum(known))
                epochs = max(first - start, 0) // sum(known)
                epoch, start = epoch + epochs, start + epochs * sum(known)
            for block in self._epoch(epoch, start):
                yield block
                start = block.end
            epoch += 1

    def _epoch(self, epoch: int, start: int) -> Iterator[Block]:
        parts: list[int] = []
        end, number = start, 0
        order = permutation(len(self.samples_per_part), self._seed, self.spec.name, "parts", epoch)
        for place, part in enumerate(order.tolist(), start=1):
            parts.append(part)
            end += self._count(part, keep=end >= self._first)
            last = place == len(order)
            if end - start >= self._shuffle_buffer or (last and end > start):
                yield Block(epoch, number, tuple(parts), start, end)
                start, number, parts = end, number + 1, []

    def _require_samples(self, samples_per_epoch: int) -> None:
        if samples_per_epoch == 0:
            raise EmptyDatasetError(
                f"dataset {self.spec.name!r} yields no sample from "
                f"{sum(self._reader.episodes_per_part)} episodes: the last "
                f"{self.spec.index_margin} frames of each start none (index_margin), and frames "
                f"that move less than {self.spec.static_epsilon} are left out (static_epsilon); "
                "see its row in data/datasets.py"
            )

    def _count(self, part: int, *, keep: bool) -> int:
        """Samples of a part; what is only passed over is neither kept nor its pictures fetched."""
        known = self.samples_per_part[part]
        if known is None and keep:
            return sum(map(len, self._part(part)))
        if known is None:
            trajectories = self._reader.read(part)
            known = sum(num_samples(t, self.spec, self._num_actions) for t in trajectories)
            self.samples_per_part[part] = known
        return known

    def _part(self, part: int) -> tuple[EpisodeSamples, ...]:
        if part not in self._in_memory:
            episodes = tuple(
                episode_samples(trajectory, self.spec, self._num_actions)
                for trajectory in self._reader.read(part)
            )
            count, before = sum(map(len, episodes)), self.samples_per_part[part]
            if before not in (None, count):
                raise ValueError(
                    f"part {part} of dataset {self.spec.name!r} has {count} samples, but had "
                    f"{before} when the position was saved: the data or its row has changed, so "
                    "the stream cannot go on where it stopped"
                )
            self.samples_per_part[part] = count
            self._in_memory[part] = episodes
        return self._in_memory[part]
