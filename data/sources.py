"""Opened sources: a reader for each storage, opened for a row, a mixture or X-VLA's meta files.

To add a storage, write a class with the interface of `data.trajectory.Reader`, add it to `READERS`
and its name to `STORAGES` in data/spec.py, or name it module:NAME in a row of your own. Opened
sources can be divided into training and held-out episodes, and described for the provenance of a
run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from data.counting.frame_counts import frames_of
from data.faults import BadEpisodeError, needs
from data.readers.built import BuiltReader, find_built
from data.readers.hdf5 import Hdf5Reader
from data.readers.lerobot import LeRobotReader
from data.readers.meta_files import STYLE_KEYS, check_meta, read_meta
from data.readers.raw import BridgeRawReader, CalvinReader
from data.readers.rlds import RldsReader
from data.readers.scattered import ScatteredReader
from data.rows.mixtures import FRAMES, MIXTURES, Mixture, Pair, check_mixture
from data.rows.table import dataset, table_row
from data.spec import DatasetSpec, is_named, load_named
from data.trajectory import Reader, Source, Trajectory
from data.untrusted import Places, read_json

with needs("data"):
    import tensorflow as tf

StoreError = tf.errors.OpError  # of TensorFlow's client, which reads buckets

_log = logging.getLogger(__name__)

READERS: dict[str, Callable[[DatasetSpec, epath.PathLike, Places], Reader]] = {
    "rlds": lambda spec, root, _: RldsReader(spec, root),
    "hdf5": Hdf5Reader,
    "lerobot": LeRobotReader,
    "scattered": ScatteredReader,
    "calvin": lambda spec, root, _: CalvinReader(spec, root),
    "bridge_raw": lambda spec, root, _: BridgeRawReader(spec, root),
}
IN_BUCKETS = ("rlds",)  # storages that are read from gs:// too, and what scripts.build_rlds writes
# X-VLA's table of weights; what is not in it weighs 1
META_WEIGHTS: Mapping[str, float] = {
    **dict(MIXTURES["xvla_pretrain"]),
    "agiworld-on-site-pack": 0.8,
    "agiworld-on-site-pack-extra": 0.2,
    "agiworld-on-site-conveyor": 0.8,
    "agiworld-on-site-conveyor-extra": 0.2,
    "agiworld-on-site-microwave": 1.2,
    "agiworld-on-site-cloth": 1.2,
    "agiworld-on-site-cloth-2": 0.1,
}
LEROBOT_KEY = "codebase_version"  # of LeRobot's meta/info.json
NOT_STATED = "not stated"
_LICENCE_KEYS = ("licence", "license")
_TERMS = "redistributionInfo"  # where dataset_info.json of tfds has them


def open_reader(spec: DatasetSpec, root: epath.PathLike, places: Places | None = None) -> Reader:
    """Opens the reader of `spec` under the data folder `root`.

    A dataset built there with this row (data/readers/built.py) comes before the recording. A
    storage module:NAME is a class with the interface of `data.trajectory.Reader`, or a generator
    function of trajectories; either is called with the row and the data folder. The files that a
    dataset names lie in `places`, by default below `root`.
    """
    _check_store(spec, root)
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


def _check_store(spec: DatasetSpec, root: epath.PathLike) -> None:
    """Refuses a data folder in a bucket for a storage that is read on disks only."""
    if "://" not in os.fspath(root) or is_named(spec.storage) or spec.storage in IN_BUCKETS:
        return
    if find_built(spec, root) is None:
        raise ValueError(
            f"dataset {spec.name!r} is stored as {spec.storage}, which is read on disks only, and "
            f"{os.fspath(root)} is in a bucket; there {' and '.join(IN_BUCKETS)} is read. Mount "
            "the bucket, or write the dataset there from a disk with scripts.build_rlds"
        )


def open_mixture(
    chosen: Mixture | Iterable[Pair],
    root: epath.PathLike,
    *,
    outside_root: bool = False,
    spare: epath.PathLike | None = None,
) -> list[Source]:
    """Opens the datasets of a mixture, all under the data folder `root`.

    Args:
        chosen: the mixture, or its (dataset, weight) pairs.
        root: the data folder.
        outside_root: files of a dataset may name others anywhere (data/untrusted.py).
        spare: folder that keeps frame counts where `root` is read-only (data/counting/).
    """
    places = Places.of(root, anywhere=outside_root)
    checked = check_mixture(chosen)
    opened = [Source(open_reader(dataset(name), root, places), weight) for name, weight in checked]
    if checked.per != FRAMES:
        return opened
    # counted when all are open: a missing dataset is named before hours of counting
    return [_weighted_by_frames(source, frames_of(source.reader, spare)) for source in opened]


def _weighted_by_frames(source: Source, frames: int) -> Source:
    if not frames:
        raise ValueError(
            f"dataset {source.reader.spec.name!r} has no frame, so its weight per frames would be "
            "0; leave it out of the mixture"
        )
    return dataclasses.replace(
        source, weight=source.weight * frames, stated=source.weight, frames=frames
    )


def open_metas(
    path: epath.PathLike, *, data_root: epath.PathLike = "", outside_root: bool = False
) -> list[Source]:
    """Opens a source for every meta file at or below `path`.

    Args:
        path: a meta file, or a folder of them.
        data_root: below which the files that they name may lie, beside the folder of `path`.
        outside_root: they may lie anywhere.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two files of one name, an unknown dataset, or a file that is not JSON.
    """
    top = Path(path)
    files = sorted(top.rglob("*.json")) if top.is_dir() else [top]
    if not top.exists():
        raise FileNotFoundError(f"train_metas_path: {top} does not exist")
    places = Places.of(top, data_root, anywhere=outside_root)
    by_name: dict[str, tuple[Path, Source]] = {}
    for file in files:
        opened = _open_meta(file, places)
        if opened is None:
            continue
        name, source = opened
        if name in by_name:
            raise ValueError(
                f"{by_name[name][0]} and {file} are both of dataset {name!r}; give one of them "
                "another dataset_name"
            )
        by_name[name] = (file, source)
    if not by_name:
        raise FileNotFoundError(
            f"train_metas_path: {top} holds no meta file; one has the keys "
            f"{' and '.join(STYLE_KEYS)}, or is LeRobot's meta/info.json"
        )
    return [source for _, source in by_name.values()]


def _open_meta(file: Path, places: Places) -> tuple[str, Source] | None:
    """The name and source of a meta file; None for another JSON file."""
    content = read_meta(file)
    if all(key in content for key in STYLE_KEYS):
        check_meta(content, file)
        name, root = content["dataset_name"], file
    elif LEROBOT_KEY in content:
        root = places.path(file.parent.parent, content.get("root_path") or "", file)
        name = str(root)
    else:
        _log.warning("%s is no meta file and is skipped", file)
        return None
    handler = content.get("robot_type") or content.get("dataset_name")
    try:
        row = table_row(handler)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    spec = dataclasses.replace(row, name=name)
    return name, Source(open_reader(spec, root, places), META_WEIGHTS.get(name, 1.0))


class GeneratedReader:
    """A generator function of trajectories as a reader of one part.

    It runs once on opening, to count the episodes, and again for every read. All samples of the
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


def hold_out(source: Source, count: int) -> tuple[Source, Source]:
    """Divides a source: all episodes but `count`, and these, spread evenly over the source.

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
        dataclasses.replace(source, reader=SomeEpisodes(source.reader, rest)),
        dataclasses.replace(source, reader=SomeEpisodes(source.reader, held)),
    )


def evenly_spread(count: int, total: int) -> frozenset[int]:
    """`count` of the numbers 0 .. total - 1, in the middle of stretches of equal length."""
    return frozenset((2 * i + 1) * total // (2 * count) for i in range(count))


class SomeEpisodes:
    """A reader of some of another's episodes; parts that hold none of them are never read."""

    def __init__(self, reader: Reader, numbers: frozenset[int]) -> None:
        """Keeps the episodes `numbers`, counted from 0 part after part."""
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
        """Kept episodes of a part, bad ones in their place."""
        of_reader, within = self._kept[part]
        last = max(within)
        for number, episode in enumerate(self._reader.read(of_reader)):
            if number in within:
                yield episode
            if number == last:
                return


def origin(source: Source, *, held_out: int = 0, domain_id: int | None = None) -> dict[str, Any]:
    """Description of an opened source for the provenance of a run, as plain JSON values.

    Args:
        source: as it is trained on.
        held_out: how many of its episodes are kept out of training.
        domain_id: id that its domain has in the run; None: as its row fixes it.
    """
    reader = source.reader
    files = [epath.Path(path) for path in getattr(reader, "index_files", ())]
    return {
        "name": reader.spec.name,
        "domain": reader.spec.domain,
        "domain_id": reader.spec.domain_id if domain_id is None else domain_id,
        "storage": reader.spec.storage,
        "row": reader.spec.fingerprint,
        "weight": source.weight,
        "stated_weight": source.weight if source.stated is None else source.stated,
        "frames": source.frames,
        "episodes": sum(reader.episodes_per_part),
        "held_out_episodes": held_out,
        "index_files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "licence": _licence(files),
    }


def _licence(files: Iterable[epath.Path]) -> str:
    """The first licence that a JSON among the files states."""
    for path in files:
        if path.suffix != ".json":
            continue
        content = read_json(path)
        if not isinstance(content, dict):
            continue
        terms = content.get(_TERMS)
        for place in (content, terms if isinstance(terms, dict) else {}):
            stated = next((place[key] for key in _LICENCE_KEYS if place.get(key)), None)
            if stated:
                return str(stated)
    return NOT_STATED
