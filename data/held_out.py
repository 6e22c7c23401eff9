"""Episodes kept out of training, to measure on: some of each source, evenly spread over it.

Which ones depends on their number in the source alone, so it is the same on every host, in every
run and for every seed.
"""

from __future__ import annotations

from collections.abc import Iterator

from data.faults import BadEpisodeError
from data.spec import DatasetSpec
from data.stream.pipeline import Source
from data.trajectory import Reader, Trajectory


class SomeEpisodes:
    """A reader of some of another's episodes; parts that hold none of them are passed over."""

    def __init__(self, reader: Reader, numbers: frozenset[int]) -> None:
        """`numbers` count the reader's episodes from 0, part after part."""
        self.spec: DatasetSpec = reader.spec
        self.index_files = getattr(reader, "index_files", ())  # readers of users may have none
        self._reader = reader
        self._kept: list[tuple[int, frozenset[int]]] = []  # part, episodes counted within it
        first = 0
        for part, size in enumerate(reader.episodes_per_part):
            within = frozenset(n - first for n in numbers if first <= n < first + size)
            if within:
                self._kept.append((part, within))
            first += size
        self.episodes_per_part = tuple(len(within) for _, within in self._kept)

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """The kept episodes of a part, bad ones in their place."""
        of_reader, within = self._kept[part]
        last = max(within)
        for number, episode in enumerate(self._reader.read(of_reader)):
            if number in within:
                yield episode
            if number == last:
                return


def evenly_spread(count: int, total: int) -> frozenset[int]:
    """`count` of the numbers 0 .. total - 1, in the middle of stretches of equal length."""
    return frozenset((2 * i + 1) * total // (2 * count) for i in range(count))


def hold_out(source: Source, count: int) -> tuple[Source, Source]:
    """A source without `count` of its episodes, and these.

    Raises:
        ValueError: nothing would be left to train on, or `count` is not positive.
    """
    total = sum(source.reader.episodes_per_part)
    if not 0 < count < total:
        raise ValueError(
            f"config.validation.episodes is {count}; dataset {source.reader.spec.name!r} has "
            f"{total} episodes, so 1 to {total - 1} of them can be held out"
        )
    held = evenly_spread(count, total)
    rest = frozenset(range(total)) - held
    return (
        Source(SomeEpisodes(source.reader, rest), source.weight),
        Source(SomeEpisodes(source.reader, held), source.weight),
    )
