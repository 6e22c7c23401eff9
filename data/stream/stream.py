"""The endless, exactly repeatable sample stream of one source, in one or more lanes.

An epoch visits the parts (files) in a random order and deals them to the lanes in turn, so every
sample comes once an epoch and a lane reads files of its own. A lane gathers its parts into
*blocks*; within a block the samples come in random order. Blocks of all lanes together hold at
least `shuffle_buffer` samples of at least `MIN_EPISODES` episodes, or, where an epoch has less, all
of it: a plain shuffle without replacement. Many sources may share one `shuffle_buffer` by their
shares of the samples (`shuffle_per`), so that memory does not grow with their number.

Everything is a function of the seed, so sample number n is reached by counting samples, without
decoding an image, or from a `Cursor` without counting. Files are read from start to end, because a
TFRecord file allows nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.faults import FRAMES_LEFT_OUT, LEFT_OUT, Faults
from data.sampling import DEALS, Int64, Mixer, permutation, random_words
from data.spec import DatasetSpec
from data.stream.windows import EpisodeSamples, episode_samples, num_samples
from data.trajectory import Reader, Trajectory

SHUFFLE_PER = ("source", "mixture")
MIN_EPISODES = 20  # in the blocks of all lanes; fewer would give batches of near-equal samples


class EmptyDatasetError(ValueError):
    """A dataset that yields no sample in a complete pass."""


@dataclass(frozen=True)
class StreamShape:
    """Numbers that, with the sources, decide the global stream of samples.

    Attributes:
        seed: of everything that is drawn.
        batch_size: samples in a global batch.
        num_actions: actions of a chunk (T).
        shuffle_buffer: samples over which all lanes of a source together are shuffled.
        lanes: stretches of a batch's rows that are fed from files of their own.
        shuffle_per: "source": each source has `shuffle_buffer`. "mixture": a source has its share
            of the samples of it.
        deal: of positions to sources, a name in `data.sampling.DEALS`.
    """

    seed: int
    batch_size: int
    num_actions: int
    shuffle_buffer: int
    lanes: int
    shuffle_per: str = SHUFFLE_PER[0]
    deal: str = DEALS[0]

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size, shuffle_buffer=self.shuffle_buffer)
        if self.shuffle_per not in SHUFFLE_PER:
            raise ValueError(
                f"config.data.shuffle_per is {self.shuffle_per!r}; allowed are "
                f"{', '.join(SHUFFLE_PER)}"
            )
        if self.deal not in DEALS:
            raise ValueError(f"config.data.deal is {self.deal!r}; allowed are {', '.join(DEALS)}")

    def of_source(self, share: float) -> StreamShape:
        """Returns the shape for a source with this share of the samples."""
        if self.shuffle_per == "source":
            return self
        return dataclasses.replace(self, shuffle_buffer=math.ceil(share * self.shuffle_buffer))

    def mixer(self, weights: Sequence[float], views: Sequence[int]) -> Mixer:
        """Returns the dealer of positions to sources; evenly, also to those of as many views."""
        kinds = None if self.deal == "independent" else views
        return Mixer(weights, self.seed, batch_size=self.batch_size, lanes=self.lanes, kinds=kinds)


def check_at_least(least: int, **values: float) -> None:
    """Raises a ValueError that names the first of `values` below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; it must be {least} or more")


class Cursor(NamedTuple):
    """A block in the stream of one lane."""

    epoch: int
    place: int  # in the order of the lane's parts in this epoch
    block: int  # number within the epoch
    start: int  # samples of the stream before it
    end: int = -1  # samples of the stream up to its end; -1: not known yet


BEGINNING = Cursor(epoch=0, place=0, block=0, start=0)


class Sample(NamedTuple):
    """Row `row` of the samples of one episode."""

    spec: DatasetSpec
    episode: EpisodeSamples
    row: int
    number: int  # in the stream of its source and lane
    lane: int  # with the number it decides what is drawn for the sample

    def __str__(self) -> str:
        """Dataset, episode and frame."""
        frame = int(self.episode.frames[self.row])
        return f"{self.spec.name} {self.episode.episode} frame {frame}"

    @property
    def visit(self) -> tuple[str, int, int]:
        """Key of this visit, which no other visit of the run has; every draw uses it."""
        return self.spec.name, self.lane, self.number


@dataclass(frozen=True)
class LoadedBlock:
    """A block in memory: samples number cursor.start .. cursor.end - 1 of the stream."""

    cursor: Cursor
    spec: DatasetSpec
    lane: int
    episodes: tuple[EpisodeSamples, ...]
    ends: Int64  # [episodes] samples up to and including each
    order: Int64  # [samples]

    def sample(self, number: int) -> Sample:
        """Sample `number` of the stream, which lies in this block."""
        flat = int(self.order[number - self.cursor.start])  # in the samples of all episodes
        place = int(np.searchsorted(self.ends, flat, side="right"))
        episode = self.episodes[place]
        row = flat - (int(self.ends[place]) - len(episode))
        return Sample(self.spec, episode, row, number, self.lane)

    def from_here(self, number: int) -> Iterator[Sample]:
        """Sample `number`, then those that take its place, in turn, if its images are bad."""
        # within the block, whose episodes are in memory; and by number, so the stand-in is the same
        # on every host and after every restart
        start, size = self.cursor.start, self.cursor.end - self.cursor.start
        for ahead in range(size):
            yield self.sample(start + (number - start + ahead) % size)


class Counts:
    """Samples and episodes with samples of each part, as far as known; shared by all lanes."""

    def __init__(self, num_parts: int) -> None:
        self._known: dict[int, tuple[int, int]] = {}
        self._num_parts = num_parts

    # lanes write the same value at worst twice, so no lock is needed
    def __getitem__(self, part: int) -> tuple[int, int] | None:
        return self._known.get(part)

    def __setitem__(self, part: int, count: tuple[int, int]) -> None:
        self._known[part] = count

    @property
    def empty(self) -> bool:
        """True once all parts are counted and none has a sample."""
        known = len(self._known) == self._num_parts
        return known and not any(samples for samples, _ in self._known.values())


class SourceStream:
    """Samples of one lane by number, in rising order; the next block is read ahead."""

    def __init__(
        self,
        reader: Reader,
        shape: StreamShape,
        lane: int,
        *,
        pool: Executor,
        faults: Faults,
        counts: Counts,
        first: int = 0,
        cursor: Cursor = BEGINNING,
    ) -> None:
        """Opens the stream at sample number `first`; a `cursor` near it saves the counting.

        Args:
            reader: the source.
            shape: decides the stream.
            lane: which of shape.lanes this is.
            pool: reads ahead.
            faults: counts bad episodes, and says when they are too many.
            counts: samples of the parts, shared with the other lanes.
            first: number of the first sample that will be asked for.
            cursor: of a block that starts at `first` or before.
        """
        self.spec = reader.spec
        self.lane = lane
        self._reader = reader
        self._shape = shape
        # a lane's share, rounded up
        self._min_samples = -(-shape.shuffle_buffer // shape.lanes)
        self._min_episodes = -(-MIN_EPISODES // shape.lanes)
        self._pool = pool
        self._faults = faults
        self._counts = counts
        self._first = first
        self._in_memory: dict[int, tuple[EpisodeSamples, ...]] = {}
        self.cursor = cursor  # of the block in use
        # the generator runs in the pool, one `next` at a time: `block` waits for each
        self._blocks = self._load_from(cursor)
        self._next: Future[LoadedBlock] = pool.submit(next, self._blocks)
        self._current: LoadedBlock | None = None

    def block(self, number: int) -> LoadedBlock:
        """Returns the block of sample `number`; numbers never fall.

        Raises:
            EmptyDatasetError: a complete pass gave no sample.
            TooManyBadEpisodesError: more episodes than allowed cannot be used.
        """
        # while a batch uses this block, the pool reads the next one
        while self._current is None or number >= self._current.cursor.end:
            self._current = self._next.result()
            self.cursor = self._current.cursor
            self._next = self._pool.submit(next, self._blocks)
        return self._current

    def _load_from(self, cursor: Cursor) -> Iterator[LoadedBlock]:
        for block, parts in self._walk(cursor):
            # counting may have read parts of blocks that are skipped: keep this block's alone
            kept = set(parts) & set(self._in_memory)
            self._in_memory = {part: self._in_memory[part] for part in kept}
            if block.end <= self._first:
                continue
            # by number of the part: it does not matter in which order they were counted
            episodes = tuple(e for part in sorted(parts) for e in self._part(part))
            purpose = (self.spec.name, "samples", self.lane, block.epoch, block.block)
            order = permutation(block.end - block.start, self._shape.seed, *purpose)
            ends = np.cumsum([len(episode) for episode in episodes])
            yield LoadedBlock(block, self.spec, self.lane, episodes, ends, order)

    def _walk(self, cursor: Cursor) -> Iterator[tuple[Cursor, tuple[int, ...]]]:
        """All blocks from the one of `cursor` on, epoch after epoch, with the parts of each."""
        saved_end = cursor.end
        while True:
            if self._counts.empty:
                raise EmptyDatasetError(self._why_empty())
            for block, parts in self._epoch(cursor):
                # the first block was counted before the position was saved
                if saved_end not in (-1, block.end):
                    raise ValueError(
                        f"dataset {self.spec.name!r} has {block.end - block.start} samples where "
                        f"there were {saved_end - block.start} when the position was saved: the "
                        "data or its row has changed, so the stream cannot continue where it "
                        "stopped"
                    )
                saved_end = -1
                yield block, parts
                cursor = block
            # an epoch of this lane without a sample leaves `end` unknown
            cursor = Cursor(cursor.epoch + 1, 0, 0, max(cursor.start, cursor.end))

    def _epoch(self, cursor: Cursor) -> Iterator[tuple[Cursor, tuple[int, ...]]]:
        """Blocks of an epoch from the one of `cursor` on, with the parts of each."""
        mine = self._parts_of(cursor.epoch)
        begin = cursor.place
        end, episodes = cursor.start, 0
        for place in range(cursor.place, len(mine)):
            samples, filled = self._count(mine[place], keep=end >= self._first)
            end, episodes = end + samples, episodes + filled
            full = end - cursor.start >= self._min_samples and episodes >= self._min_episodes
            # a block ends with the epoch too, so that no sample comes twice before all came once
            if (full or place == len(mine) - 1) and end > cursor.start:
                yield cursor._replace(end=end), tuple(mine[begin : place + 1])
                begin, episodes = place + 1, 0
                cursor = Cursor(cursor.epoch, begin, cursor.block + 1, end)

    def _parts_of(self, epoch: int) -> Sequence[int]:
        """Parts of this lane in an epoch, in the order visited."""
        name, num_parts = self.spec.name, len(self._reader.episodes_per_part)
        order = permutation(num_parts, self._shape.seed, name, "parts", epoch)
        # another lane is dealt the first part in every epoch: with fewer parts than lanes, the same
        # lanes would stay empty otherwise
        turn = int(random_words(1, self._shape.seed, name, "deal", epoch)[0]) % self._shape.lanes
        return order[(self.lane - turn) % self._shape.lanes :: self._shape.lanes].tolist()

    def _why_empty(self) -> str:
        spec = self.spec
        counts = self._faults.left_out.get(spec.name, {})
        reasons = [f"{counts[kind]} are left out: {kind}" for kind in LEFT_OUT if kind in counts]
        apart = f" ({', '.join(reasons)})" if reasons else ""
        return (
            f"dataset {spec.name!r} yields no sample from {sum(self._reader.episodes_per_part)} "
            f"episodes{apart}: the last {spec.index_margin} frames "
            f"of each start none (index_margin), and frames that move less than "
            f"{spec.static_epsilon} are left out (static_epsilon); its row is in {spec.written_in}"
        )

    def _count(self, part: int, *, keep: bool) -> tuple[int, int]:
        """Counts samples and episodes of a part; reads images only of what is kept.

        Images that cannot be read do not change the count: their samples are replaced when drawn,
        so a position means the same sample on every run.
        """
        known = self._counts[part]
        if known is not None:
            return known
        if keep:
            lengths = [len(episode) for episode in self._part(part)]
        else:
            lengths = [num_samples(t, self.spec, self._shape.num_actions) for t in self._read(part)]
        self._counts[part] = count = sum(lengths), sum(length > 0 for length in lengths)
        return count

    def _part(self, part: int) -> tuple[EpisodeSamples, ...]:
        if part not in self._in_memory:
            self._in_memory[part] = tuple(
                episode_samples(trajectory, self.spec, self._shape.num_actions)
                for trajectory in self._read(part)
            )
        return self._in_memory[part]

    def _read(self, part: int) -> Iterator[Trajectory]:
        return good_trajectories(self._reader, part, self._faults)


def good_trajectories(reader: Reader, part: int, faults: Faults) -> Iterator[Trajectory]:
    """Trajectories of a part that can be used; `faults` counts the others."""
    for trajectory in faults.sift(reader.read(part)):
        frames = trajectory.frames_without_text
        if frames:
            faults.leave_out(trajectory.dataset, trajectory.episode, FRAMES_LEFT_OUT, frames)
        yield trajectory
