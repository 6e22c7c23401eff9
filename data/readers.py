"""Storage formats by name, and the way from a mixture to opened sources."""

from __future__ import annotations

from collections.abc import Callable

from etils import epath

from data.datasets import dataset
from data.mixtures import Mixture, check_mixture
from data.pipeline import Source
from data.rlds import RldsReader
from data.spec import DatasetSpec
from data.trajectory import Reader

READERS: dict[str, Callable[[DatasetSpec, epath.PathLike], Reader]] = {"rlds": RldsReader}


def open_reader(spec: DatasetSpec, root: epath.PathLike) -> Reader:
    """The reader of `spec`'s storage, opened under the data folder `root`."""
    return READERS[spec.storage](spec, root)


def open_mixture(pairs: Mixture, root: epath.PathLike) -> list[Source]:
    """Opened sources of a mixture's (dataset, weight) pairs, all under the data folder `root`."""
    return [
        Source(open_reader(dataset(name), root), weight) for name, weight in check_mixture(pairs)
    ]
