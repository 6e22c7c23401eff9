"""Reader for HDF5 episodes: listed in an X-VLA meta file, or those of a folder or of one file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import NDArray

from data.faults import BadEpisodeError, FaultError, attempt, needs
from data.images import ENCODED, MAGIC, RAW_IMAGES, UInt8, image_form, stored_images
from data.parts import View, plain_views
from data.readers.hdf5_files import (
    SUFFIXES,
    Hdf5Episode,
    all_values,
    check_frame_size,
    find_episodes,
    has_key,
    stored_array,
    stored_attribute,
    stored_item,
)
from data.readers.meta_files import MetaFile, find_meta_file, styled_files
from data.spec import DatasetSpec
from data.texts import recorded_texts
from data.trajectory import Images, Trajectory, standard_trajectory
from data.untrusted import Places

_log = logging.getLogger(__name__)

with needs("data"):
    import h5py

OBSERVATIONS, TEXT_FIELD = "observation_key", "language_instruction_key"  # of a meta file


class Hdf5Reader:
    """The episodes of a meta file, opened for a dataset row; a part is one episode.

    The meta file names the views and the instruction (`observation_key`,
    `language_instruction_key`); the row has everything else, and may name the views instead. The
    text may be an array or an attribute; a row with a fixed instruction needs none.

    A row that names its views needs no meta file: where there is none, its episodes are those of
    the folder <root>/<storage_name>, the file of that name, or the folder <root>. An episode is
    then a file, as ACT writes them, or a group in the group ``data`` of one, as robomimic does;
    keys of the row begin there.

    Raises:
        FileNotFoundError: no meta file and no episode, or the first episode is absent.
        ValueError: the first episode has not the keys of the meta file and the row.
    """

    def __init__(
        self, spec: DatasetSpec, root: epath.PathLike, places: Places | None = None
    ) -> None:
        self.spec, self._paraphrases = spec, {}
        self.index_files: tuple[Path, ...] = ()
        self._episodes = _without_meta_file(spec, Path(root))
        if not self._episodes:
            self._take(find_meta_file(root, spec.storage_name, places), spec)
        self._warned = False
        self.episodes_per_part: tuple[int, ...] = (1,) * len(self._episodes)
        self._check_first()

    def _take(self, meta: MetaFile, spec: DatasetSpec) -> None:
        """Takes episodes, views and texts from a meta file."""
        order = meta.content.get("encoded_channel_order", spec.encoded_channel_order)
        self.spec = dataclasses.replace(
            spec,
            views=_views(meta, spec),
            instruction_keys=_instruction_keys(meta, spec),
            encoded_channel_order=order,
        )
        self._episodes = [Hdf5Episode(path) for path in meta.paths]
        self.index_files = (meta.path,)
        self._paraphrases = meta.paraphrases

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """Trajectory of episode number `part`; its images are read when they are taken."""
        place = self._episodes[part]
        yield attempt(self.spec.name, place.name, lambda: self._trajectory(place))

    def _trajectory(self, place: Hdf5Episode) -> Trajectory:
        with h5py.File(place.path) as file:
            self._check_keys(file, place)
            keys = {place.key(key): key for key in self.spec.state_keys}
            raw = {keys[key]: rows for key, rows in read_arrays(file, tuple(keys)).items()}
            instruction = self._text(file, place, min(map(len, raw.values())))
            views = tuple(
                Hdf5Images.open(file, place.path, place.key(key)) for key in self.spec.view_keys
            )
        return standard_trajectory(
            raw,
            self.spec,
            place.name,
            instruction=instruction,
            images=views,
            paraphrases=self._paraphrases,
        )

    def _text(self, file: h5py.File, place: Hdf5Episode, num_frames: int) -> Any:
        """The instruction as recorded: one text, or one for each frame.

        X-VLA takes the first text of a list of another length.
        """
        if not self.spec.text_keys:
            return None
        key = place.key(*self.spec.text_keys)
        texts = recorded_texts(_recorded(file, key), key)
        if len(texts) in (1, num_frames) or len(set(texts)) == 1:
            return texts if len(texts) == num_frames else texts[0]
        if abs(len(texts) - num_frames) <= max(1, self.spec.picture_offset):
            raise FaultError("unequal_lengths", f"{key}: {len(texts)} texts, {num_frames} frames")
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: %s has %d texts for %d frames; as X-VLA's own reader, the first is taken, "
                "here and in every such episode",
                file.filename,
                key,
                len(texts),
                num_frames,
            )
        return texts[0]

    def _check_keys(self, file: h5py.File, place: Hdf5Episode) -> None:
        views, texts, numbers = (
            [place.key(key) for key in keys]
            for keys in (self.spec.view_keys, self.spec.text_keys, self.spec.state_keys)
        )
        texts = [key for key in texts if stored_attribute(file, key) is None]
        check_present(file, (*views, *texts, *numbers))

    def _check_first(self) -> None:
        place = self._episodes[0]
        try:
            with h5py.File(place.path) as file:
                self._check_keys(file, place)
        except LookupError as error:
            raise ValueError(
                f"dataset {self.spec.name!r} {error} ({self.spec.written_in}, or its meta file)"
            ) from error


class Hdf5Images:
    """The images of one view of an HDF5 episode, in any of the usual forms.

    The form is an array [T, ...], or a group with an array per frame under its number. A frame is
    bytes of fixed or variable length, a row of bytes padded with zeros, or pixels. Encoded images
    are read when they are taken; pixels, which are large, stay in the file until asked for.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        names: tuple[str, ...],
        places: NDArray[np.int64],
        *,
        pixels: bool,
    ) -> None:
        """Takes the frames `places`; `names` are those of the frames where `key` is a group."""
        self._path = path
        self._key = key
        self._names = names
        self._places = places
        self._pixels = pixels

    @staticmethod
    def open(file: h5py.File, path: Path, key: str) -> Hdf5Images:
        """Opens the images under `key`; a FaultError says what is there instead."""
        item = stored_item(file, key)
        names = () if isinstance(item, h5py.Dataset) else _frame_names(file, key, item)
        frame: Any = stored_array(file, f"{key}/{names[0]}") if names else item
        shape = frame.shape if names else frame.shape[1:]
        if not names and not frame.shape:
            raise FaultError("malformed", f"{key} is a single {frame.dtype}, not one per frame")
        check_frame_size(frame.dtype, shape, key)
        if frame.dtype != object:
            form = image_form(frame.dtype, shape, key)
        else:  # of variable length: byte strings, or arrays of which the type is known
            form = ENCODED
            values = h5py.check_vlen_dtype(frame.dtype)
            if h5py.check_string_dtype(frame.dtype) is None and values is not None:
                image_form(np.dtype(values), (1,), key)
        places = np.arange(len(names or frame))
        return Hdf5Images(path, key, names, places, pixels=form != ENCODED)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        """One image; a ValueError names the file."""
        try:
            return self._read(self._places[[index]])[0]
        except OSError as error:
            raise ValueError(f"{self._path}: {error}") from error

    def take(self, indices: NDArray[np.int64]) -> Images:
        """Images at `indices`, in memory where they are encoded."""
        places = self._places[indices]
        if self._pixels:
            return Hdf5Images(self._path, self._key, self._names, places, pixels=True)
        return self._read(places)

    def _read(self, places: NDArray[np.int64]) -> NDArray[np.object_]:
        if not len(places):
            return np.empty(0, object)
        first, end = int(places.min()), int(places.max()) + 1
        with h5py.File(self._path) as file:
            if self._names:
                frames = self._names[first:end]
                rows: Any = [all_values(file, f"{self._key}/{name}") for name in frames]
            else:
                rows = stored_array(file, self._key)[first:end]
        if isinstance(rows, np.ndarray) and rows.dtype.kind == "S":
            rows = _with_zeros(rows)
        stored = stored_images(rows, self._key)
        for place, image in enumerate(stored):
            stored[place] = _camera_buffer(image)
        return stored[places - first]  # frames share the bytes where a frame is taken twice


def read_arrays(
    file: h5py.File,
    keys: tuple[str, ...],
    substitutes: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Reads the arrays under `keys`; an absent one is column 0 of each of its substitutes.

    Raises:
        LookupError: names the missing keys, and those that the file has.
    """
    arrays = {}
    for key in keys:
        others = () if has_key(file, key) else (substitutes or {}).get(key, ())
        check_present(file, others or (key,))
        if others:
            columns = [all_values(file, other) for other in others]
            arrays[key] = np.stack([c.reshape(len(c), -1)[:, 0] for c in columns], axis=1)
        else:
            arrays[key] = all_values(file, key)
    return arrays


def check_present(file: h5py.File, keys: Iterable[str]) -> None:
    """Raises a LookupError that names those of `keys` that the file lacks, and what it has."""
    missing = [key for key in keys if not has_key(file, key)]
    if missing:
        paths: list[str] = []
        file.visititems(lambda name, item: paths.append(name) if _is_array(item) else None)
        raise LookupError(
            f"reads {', '.join(missing)}, which {file.filename} does not have; it has "
            + ", ".join(paths)
        )


def _without_meta_file(spec: DatasetSpec, root: Path) -> list[Hdf5Episode]:
    """Episodes of a row that names its views, where no meta file is there; else none."""
    name, own = spec.storage_name, root / spec.storage_name
    styled = styled_files(root, name) if spec.views and not root.is_file() else {}
    names = {content.get("robot_type") or content["dataset_name"] for content in styled.values()}
    if not spec.views or root.is_file() or name in names:
        return []
    files = [own.with_name(own.name + suffix) for suffix in SUFFIXES]
    # a folder with the meta file of another set is not taken for this one
    places = [own, *([root] if root.name == name else []), *files, *([] if styled else [root])]
    for place in places:
        episodes = find_episodes(place)
        if episodes:
            return episodes
    return []


def _views(meta: MetaFile, spec: DatasetSpec) -> tuple[View, ...]:
    """Views that the meta file names, or else the row; a ValueError where they disagree."""
    if spec.views and OBSERVATIONS not in meta.content:
        return spec.views
    stated = meta.field(OBSERVATIONS)
    views = [stated] if isinstance(stated, str) else stated
    named = isinstance(views, list) and all(isinstance(view, str) and view for view in views)
    if not named or not views:
        raise ValueError(
            f"{meta.path}: {OBSERVATIONS} is {stated!r}; it must be the path of an array in the "
            "episodes, or a list of such paths, main camera first"
        )
    if spec.views and tuple(views) != spec.view_keys:
        raise ValueError(
            f"{meta.path}: {OBSERVATIONS} names {', '.join(views)}, but the views of dataset row "
            f"{spec.name!r} are {', '.join(spec.view_keys)}; let one of the two name them"
        )
    return spec.views or plain_views(*views)


def _is_array(item: Any) -> bool:
    return isinstance(item, h5py.Dataset)


def _instruction_keys(meta: MetaFile, spec: DatasetSpec) -> tuple[str, ...]:
    """Key of the text, from the meta file or else the row; none where the row fixes the text."""
    key = meta.content.get(TEXT_FIELD, next(iter(spec.instruction_keys), None))
    if key is None and spec.fixed_instruction is not None:
        return ()
    key = meta.field(TEXT_FIELD) if key is None else key
    if not isinstance(key, str):
        raise ValueError(f"{meta.path}: {TEXT_FIELD} is {key!r}, allowed is the path of an array")
    return (key,)


def _recorded(file: h5py.File, key: str) -> Any:
    """Value of a text's attribute, or else of its array; None for HDF5's Empty."""
    value = stored_attribute(file, key)
    if value is None:
        value = all_values(file, key)
    return None if isinstance(value, h5py.Empty) else value


def _frame_names(file: h5py.File, key: str, item: h5py.Group) -> tuple[str, ...]:
    """Members of a group with one per frame, in their order."""
    numbers = sorted((int(name), name) for name in map(str, item) if name.isdecimal())
    first = numbers[0][0] if numbers else 0
    counted = [number for number, _ in numbers] == list(range(first, first + len(item)))
    members = (stored_item(file, f"{key}/{name}") for _, name in numbers)
    if not counted or not numbers or not all(map(_is_array, members)):
        raise FaultError(
            "malformed",
            f"{key} is a group of {', '.join(list(item)[:5]) or 'nothing'}; images are an array, "
            "or a group with one array per frame, named 0, 1, ...",
        )
    return tuple(name for _, name in numbers)


def _with_zeros(rows: NDArray[Any]) -> NDArray[Any]:
    """Byte strings of a camera buffer's length as rows of bytes; numpy would cut zeros behind."""
    if rows.dtype.itemsize not in RAW_IMAGES:
        return rows
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)


def _camera_buffer(image: bytes | UInt8) -> bytes | UInt8:
    """Turns bytes that are the pixels of a known camera into uint8[H, W, 3]; files stay bytes."""
    if not isinstance(image, bytes) or image.startswith(MAGIC):
        return image
    shape = RAW_IMAGES.get(len(image))
    return image if shape is None else np.frombuffer(image, np.uint8).reshape(shape)
