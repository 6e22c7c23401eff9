"""Reader for HDF5 episodes listed in an X-VLA meta file: one file per episode, pictures encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from etils import epath
from numpy.typing import NDArray

from data.faults import BadEpisodeError, attempt
from data.hdf5_files import count_rows, has_key, stored_array, whole_array
from data.images import RAW_PICTURES
from data.meta_files import find_meta_file
from data.places import Places
from data.spec import DatasetSpec
from data.trajectory import Pictures, Trajectory, standard_trajectory


class Hdf5Reader:
    """The episodes of a meta file, opened for a dataset row; a part is one episode.

    The meta file names the views and the instruction (`observation_key`,
    `language_instruction_key`); the row has everything else.

    Raises:
        FileNotFoundError: no meta file, or its first episode is not there.
        ValueError: the first episode has not the keys of the meta file and the row.
    """

    def __init__(
        self, spec: DatasetSpec, root: epath.PathLike, places: Places | None = None
    ) -> None:
        meta = find_meta_file(root, spec.storage_name, places)
        order = meta.content.get("encoded_channel_order", spec.encoded_channel_order)
        self.spec = dataclasses.replace(
            spec,
            views=tuple(meta.field("observation_key")),
            instruction_key=meta.field("language_instruction_key"),
            encoded_channel_order=order,
        )
        # an entry is a path, or a list that begins with one
        paths = [entry[0] if isinstance(entry, list) and entry else entry for entry in meta.entries]
        self._paths = [meta.resolve(path) for path in paths]
        self.index_files = (meta.path,)
        self._paraphrases = meta.paraphrases
        self.episodes_per_part: tuple[int, ...] = (1,) * len(self._paths)
        self._check_first()

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """The trajectory of episode number `part`; its pictures are read when they are taken."""
        path = self._paths[part]
        yield attempt(self.spec.name, str(path), lambda: self._trajectory(path))

    def _trajectory(self, path: Path) -> Trajectory:
        with h5py.File(path) as file:
            check_present(file, self.spec.keys)
            raw = read_arrays(file, self.spec.state_keys)
            instruction = _text(stored_array(file, str(self.spec.instruction_key)))
            views = tuple(Hdf5Pictures(path, key, count_rows(file, key)) for key in self.spec.views)
        return standard_trajectory(
            raw,
            self.spec,
            str(path),
            instruction=instruction,
            images=views,
            paraphrases=self._paraphrases,
        )

    def _check_first(self) -> None:
        try:
            with h5py.File(self._paths[0]) as file:
                check_present(file, self.spec.keys)
        except LookupError as error:
            raise ValueError(
                f"dataset {self.spec.name!r} {error} (data/datasets.py, or its meta file)"
            ) from error


class Hdf5Pictures:
    """The encoded pictures of one view of an HDF5 episode, in any of the usual forms.

    That is byte strings of fixed or variable length, arrays of bytes of variable length, or rows of
    bytes filled up with zeros.
    """

    def __init__(self, path: Path, key: str, length: int) -> None:
        self._path = path
        self._key = key
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self.take(np.array([index]))[0]

    def take(self, indices: NDArray[np.int64]) -> Pictures:
        """The pictures at `indices`, in memory."""
        taken = np.empty(len(indices), object)
        if len(indices):
            first, end = int(indices.min()), int(indices.max()) + 1
            with h5py.File(self._path) as file:
                stored = stored_array(file, self._key)[first:end]
            # frames share the bytes where a frame is taken twice
            pictures = [_picture(value) for value in stored]
            taken[:] = [pictures[index - first] for index in indices]
        return taken


def read_arrays(
    file: h5py.File,
    keys: tuple[str, ...],
    substitutes: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays under `keys`; an absent one is made of column 0 of each of its substitutes.

    Raises:
        LookupError: names what is missing, and what there is.
    """
    arrays = {}
    for key in keys:
        others = () if has_key(file, key) else (substitutes or {}).get(key, ())
        check_present(file, others or (key,))
        if others:
            columns = [whole_array(file, other) for other in others]
            arrays[key] = np.stack([c.reshape(len(c), -1)[:, 0] for c in columns], axis=1)
        else:
            arrays[key] = whole_array(file, key)
    return arrays


def check_present(file: h5py.File, keys: Iterable[str]) -> None:
    """A LookupError names those of `keys` that the file lacks, and what it has."""
    missing = [key for key in keys if not has_key(file, key)]
    if missing:
        paths: list[str] = []
        file.visititems(lambda name, item: paths.append(name) if _is_array(item) else None)
        raise LookupError(
            f"reads {', '.join(missing)}, which {file.filename} does not have; it has "
            + ", ".join(paths)
        )


def _is_array(item: Any) -> bool:
    return isinstance(item, h5py.Dataset)


def _text(array: Any) -> str | bytes:
    """A scalar string, or the first of an array of strings."""
    return array[()] if array.shape == () else array[0]


def _picture(value: Any) -> Any:
    data = value if isinstance(value, bytes) else np.asarray(value, np.uint8).tobytes()
    shape = RAW_PICTURES.get(len(data))
    return data if shape is None else np.frombuffer(data, np.uint8).reshape(shape)
