"""Reader for HDF5 episodes listed in an X-VLA meta file: one file per episode, pictures encoded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from etils import epath
from numpy.typing import NDArray

from data.faults import BadEpisodeError, FaultError, attempt
from data.images import RAW_PICTURES
from data.meta_files import MetaFile, find_meta_file
from data.spec import DatasetSpec
from data.texts import recorded_texts
from data.trajectory import Pictures, Trajectory, standard_trajectory

_log = logging.getLogger(__name__)

TEXT_FIELD = "language_instruction_key"  # of a meta file


class Hdf5Reader:
    """The episodes of a meta file, opened for a dataset row; a part is one episode.

    The meta file names the views and the instruction (`observation_key`,
    `language_instruction_key`); the row has everything else. The text may be an array or an
    attribute; a row with a fixed instruction needs none.

    Raises:
        FileNotFoundError: no meta file, or its first episode is not there.
        ValueError: the first episode has not the keys of the meta file and the row.
    """

    def __init__(self, spec: DatasetSpec, root: epath.PathLike) -> None:
        meta = find_meta_file(root, spec.storage_name)
        order = meta.content.get("encoded_channel_order", spec.encoded_channel_order)
        self.spec = dataclasses.replace(
            spec,
            views=tuple(meta.field("observation_key")),
            instruction_key=_instruction_key(meta, spec),
            encoded_channel_order=order,
        )
        # an entry is a path, or a list that begins with one
        paths = [entry if isinstance(entry, str) else entry[0] for entry in meta.entries]
        self._paths = [meta.resolve(path) for path in paths]
        self.index_files = (meta.path,)
        self._paraphrases = meta.paraphrases
        self._warned = False
        self.episodes_per_part: tuple[int, ...] = (1,) * len(self._paths)
        self._check_first()

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """The trajectory of episode number `part`; its pictures are read when they are taken."""
        path = self._paths[part]
        yield attempt(self.spec.name, str(path), lambda: self._trajectory(path))

    def _trajectory(self, path: Path) -> Trajectory:
        with h5py.File(path) as file:
            self._check_keys(file)
            raw = read_arrays(file, self.spec.state_keys)
            instruction = self._text(file, min(map(len, raw.values())))
            views = tuple(
                Hdf5Pictures(path, key, len(_array(file, key))) for key in self.spec.views
            )
        return standard_trajectory(
            raw,
            self.spec,
            str(path),
            instruction=instruction,
            images=views,
            paraphrases=self._paraphrases,
        )

    def _text(self, file: h5py.File, num_frames: int) -> Any:
        """The instruction as recorded: one text, or one for each frame.

        Of a list of another length X-VLA takes the first.
        """
        if not self.spec.text_keys:
            return None
        (key,) = self.spec.text_keys
        found = recorded_texts(_recorded(file, key), key)
        if len(found) in (1, num_frames) or len(set(found)) == 1:
            return found if len(found) == num_frames else found[0]
        if abs(len(found) - num_frames) <= max(1, self.spec.picture_offset):
            raise FaultError("unequal_lengths", f"{key}: {len(found)} texts, {num_frames} frames")
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: %s has %d texts for %d frames; as X-VLA's own reader, the first is taken, "
                "here and in every such episode",
                file.filename,
                key,
                len(found),
                num_frames,
            )
        return found[0]

    def _check_keys(self, file: h5py.File) -> None:
        texts = [key for key in self.spec.text_keys if _attribute(file, key) is None]
        check_present(file, (*self.spec.views, *texts, *self.spec.state_keys))

    def _check_first(self) -> None:
        try:
            with h5py.File(self._paths[0]) as file:
                self._check_keys(file)
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
                stored = _array(file, self._key)[first:end]
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
        others = () if key in file else (substitutes or {}).get(key, ())
        check_present(file, others or (key,))
        if others:
            columns = [_array(file, other)[()] for other in others]
            arrays[key] = np.stack([c.reshape(len(c), -1)[:, 0] for c in columns], axis=1)
        else:
            arrays[key] = _array(file, key)[()]
    return arrays


def check_present(file: h5py.File, keys: Iterable[str]) -> None:
    """A LookupError names those of `keys` that the file lacks, and what it has."""
    missing = [key for key in keys if key not in file]
    if missing:
        paths: list[str] = []
        file.visititems(lambda name, item: paths.append(name) if _is_array(item) else None)
        raise LookupError(
            f"reads {', '.join(missing)}, which {file.filename} does not have; it has "
            + ", ".join(paths)
        )


def _is_array(item: Any) -> bool:
    return isinstance(item, h5py.Dataset)


def _array(file: h5py.File, key: str) -> Any:
    item = file[key]
    if not _is_array(item):
        raise KeyError(f"{key} is no array")
    return item


def _instruction_key(meta: MetaFile, spec: DatasetSpec) -> str | None:
    """Where the text is: the meta file says it, or else the row; None: the row fixes the text."""
    key = meta.content.get(TEXT_FIELD, spec.instruction_key)
    if key is None and spec.fixed_instruction is not None:
        return None
    key = meta.field(TEXT_FIELD) if key is None else key
    if not isinstance(key, str):
        raise ValueError(f"{meta.path}: {TEXT_FIELD} is {key!r}, wanted is the path of an array")
    return key


def _recorded(file: h5py.File, key: str) -> Any:
    """What a text's array, or attribute in its place, holds; None for HDF5's Empty."""
    found = _attribute(file, key)
    if found is None:
        found = _array(file, key)[()]
    return None if isinstance(found, h5py.Empty) else found


def _attribute(file: h5py.File, key: str) -> Any:
    """The attribute `key` of the file or of a group in it, where no array has that name."""
    folder, _, name = key.rpartition("/")
    parent: Any = file if not folder else file.get(folder)
    return None if key in file or parent is None else parent.attrs.get(name)


def _picture(value: Any) -> Any:
    data = value if isinstance(value, bytes) else np.asarray(value, np.uint8).tobytes()
    shape = RAW_PICTURES.get(len(data))
    return data if shape is None else np.frombuffer(data, np.uint8).reshape(shape)
