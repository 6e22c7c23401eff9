"""Storage formats by name, and the way from a mixture to opened sources."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from data.faults import BadEpisodeError
from data.named import is_named, load_named
from data.places import Places
from data.readers.bridge_raw import BridgeRawReader
from data.readers.built import BuiltReader, find_built
from data.readers.calvin import CalvinReader
from data.readers.hdf5 import Hdf5Reader
from data.readers.lerobot import LeRobotReader
from data.readers.rlds import RldsReader
from data.readers.scattered import ScatteredReader
from data.rows.mixtures import Mixture, check_mixture
from data.rows.table import dataset
from data.spec import DatasetSpec
from data.stream.pipeline import Source
from data.trajectory import Reader, Trajectory

_log = logging.getLogger(__name__)

OpenReader = Callable[[DatasetSpec, epath.PathLike, Places], Reader]

READERS: dict[str, OpenReader] = {
    "rlds": lambda spec, root, _: RldsReader(spec, root),
    "hdf5": Hdf5Reader,
    "lerobot": LeRobotReader,
    "scattered": ScatteredReader,
    "calvin": lambda spec, root, _: CalvinReader(spec, root),
    "bridge_raw": lambda spec, root, _: BridgeRawReader(spec, root),
}


def open_reader(spec: DatasetSpec, root: epath.PathLike, places: Places | None = None) -> Reader:
    """The reader of `spec`, opened under the data folder `root`.

    A dataset built there with this row (data/readers/built.py) is taken before the recording itself. A
    storage module:NAME is a class with the interface of `data.trajectory.Reader`, or a generator
    function of trajectories; either is called with the row and the data folder. The files that a
    dataset names lie in `places`, by default below `root`.
    """
    built = find_built(spec, root)
    if built is not None:
        _log.info("%s: read from what was built, %s", spec.name, built)
        return BuiltReader(spec, built)
    if not is_named(spec.storage):
        return READERS[spec.storage](spec, root, places or Places.of(root))
    named: Any = load_named(spec.storage)
    if not callable(named):
        raise ValueError(f"{spec.storage} is no reader: neither a class nor a function")
    if inspect.isgeneratorfunction(named):
        return GeneratedReader(spec, root, named)
    reader: Any = named(spec, root)
    return reader


def open_mixture(
    pairs: Mixture, root: epath.PathLike, *, outside_root: bool = False
) -> list[Source]:
    """Opened sources of a mixture's (dataset, weight) pairs, all under the data folder `root`.

    With `outside_root` their files may name others anywhere (data/places.py).
    """
    places = Places.of(root, anywhere=outside_root)
    return [
        Source(open_reader(dataset(name), root, places), weight)
        for name, weight in check_mixture(pairs)
    ]


class GeneratedReader:
    """A generator function of trajectories as a reader of one part.

    It is run once on opening, to count the episodes, and again for every read. All samples of the
    set are in memory together: for a large one, write a class that has parts.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        root: epath.PathLike,
        generate: Callable[[DatasetSpec, epath.PathLike], Iterator[Trajectory | BadEpisodeError]],
    ) -> None:
        self.spec = spec
        self._root = root
        self._generate = generate
        self.episodes_per_part = (sum(1 for _ in generate(spec, root)),)

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """Every trajectory; there is only part 0."""
        if part != 0:
            raise IndexError(f"{self.spec.storage} has one part, not part {part}")
        return self._generate(self.spec, self._root)
