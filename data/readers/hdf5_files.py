"""Finds and reads HDF5 episodes of others, so that they lead to no other file and cannot stall.

A file may link to objects of other files, keep an array's values in other files, claim any size,
and hold a heap of strings in which HDF5 loops for ever. All four are refused by name.
"""

from __future__ import annotations

import functools
import math
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.faults import FaultError, needs
from data.images import LARGEST

with needs("data"):
    import h5py

LARGEST_ARRAY = 1 << 30  # bytes of numbers that an episode reads at once
_HEAP = b"GCOL\x01\0\0\0"  # begins a collection of the global heap, version 1
_LONGEST_CHAIN = 16  # soft links, as HDF5's own limit
_KNOWN_FILES = 1 << 16  # checked and unchanged since
_HEAP_HEAD, _OBJECT_HEAD = 16, 16  # bytes
SUFFIXES = (".hdf5", ".h5")
DEMOS = "data"  # robomimic's group of episodes
_DEMO = re.compile(r"demo_(\d+)")


@dataclass(frozen=True)
class Hdf5Episode:
    """Place of an episode: a file, or a group in one."""

    path: Path
    group: str = ""

    @property
    def name(self) -> str:
        """The file, and the group behind #."""
        return f"{self.path}#{self.group}" if self.group else str(self.path)

    def key(self, key: str) -> str:
        """Key in the file of a key of the episode."""
        return f"{self.group}/{key}" if self.group else key


def find_episodes(place: Path) -> list[Hdf5Episode]:
    """Episodes of a file, or of the .hdf5 and .h5 files of a folder, in the order of their numbers.

    A file is one episode, as ACT writes them, or has the groups data/demo_0, data/demo_1, ... of
    robomimic, as the first file of the folder has.

    Raises:
        ValueError: the first file is no HDF5 file, or a later one has no such group.
    """
    there = [place] if place.is_file() else place.iterdir() if place.is_dir() else ()
    files = sorted((p for p in there if p.suffix in SUFFIXES and p.name[0] != "."), key=_numbers_of)
    if not files or not _demos(files[0]):
        return [Hdf5Episode(path) for path in files]
    episodes = []
    for path in files:
        demos = _demos(path)
        if not demos:
            raise ValueError(f"{path} has no group {DEMOS}/demo_0, ..., as {files[0].name} has")
        episodes += [Hdf5Episode(path, f"{DEMOS}/{name}") for name in demos]
    return episodes


def _numbers_of(path: Path) -> tuple[list[int], str]:
    """Numbers in the name of a file, so that episode_10 comes after episode_9."""
    return [int(number) for number in re.findall(r"\d+", path.stem)], path.name


def _demos(path: Path) -> list[str]:
    """Names of the groups demo_N of a file, by number."""
    try:
        with h5py.File(path) as file:
            group = stored_item(file, DEMOS) if has_key(file, DEMOS) else None
            names = [str(name) for name in group] if isinstance(group, h5py.Group) else []
    except OSError as error:
        raise ValueError(f"{path} is no HDF5 file: {error}") from error
    numbered = [(int(match[1]), name) for name in names if (match := _DEMO.fullmatch(name))]
    return [name for _, name in sorted(numbered)]


def stored_item(file: h5py.File, key: str) -> h5py.Dataset | h5py.Group:
    """The array or group under `key` of an open file.

    Raises:
        KeyError: no such key, or it is neither.
        FaultError: it lies in another file, or reading its strings would not end.
    """
    item = _item(file, key)
    if isinstance(item, h5py.Group):
        return item
    if not isinstance(item, h5py.Dataset):
        raise KeyError(f"{key} is no array")
    if item.is_virtual or item.external:
        raise FaultError("malformed", f"{key} keeps its values in other files, which is refused")
    _check_strings(file, item.dtype)
    return item


def stored_array(file: h5py.File, key: str) -> h5py.Dataset:
    """The array under `key`; raises as `stored_item`, and a KeyError where it is a group."""
    item = stored_item(file, key)
    if not isinstance(item, h5py.Dataset):
        raise KeyError(f"{key} is no array")
    return item


def stored_attribute(file: h5py.File, key: str) -> Any:
    """The attribute `key` of the file or of a group in it; None where there is none, or an array.

    Raises:
        FaultError: a link leads out of the file, or reading its strings would not end.
    """
    folder, _, name = key.rpartition("/")
    if has_key(file, key) or not has_key(file, folder):
        return None
    attributes = _item(file, folder).attrs
    if name not in attributes:
        return None
    _check_strings(file, attributes.get_id(name).dtype)
    return attributes[name]


def all_values(file: h5py.File, key: str) -> Any:
    """Values of a numeric array; a FaultError where they take more than `LARGEST_ARRAY`."""
    array = stored_array(file, key)
    check_size(array, key)
    return array[()]


def check_size(array: h5py.Dataset, key: str) -> None:
    """Refuses an array whose values take more than `LARGEST_ARRAY`; none is read."""
    if array.size and array.size * array.dtype.itemsize > LARGEST_ARRAY:
        raise FaultError(
            "malformed",
            f"{key} is {array.dtype}{list(array.shape)}, {array.size * array.dtype.itemsize} "
            f"bytes; allowed are {LARGEST_ARRAY}",
        )


def check_frame_size(dtype: Any, shape: tuple[int, ...], key: str) -> None:
    """Refuses an array of which one image takes more bytes than the largest allowed image."""
    size = math.prod(shape) * dtype.itemsize
    if size > 3 * LARGEST:
        raise FaultError(
            "malformed",
            f"an image of {key} is {dtype}{list(shape)}, {size} bytes; allowed are {3 * LARGEST}",
        )


def has_key(file: h5py.File, key: str) -> bool:
    """True where a file has `key`; a FaultError where a link leads out of it."""
    try:
        _item(file, key)
    except KeyError:
        return False
    return True


def _item(file: h5py.File, key: str) -> Any:
    """The object under `key`, reached by links within the file alone."""
    node: Any = file
    for name in filter(None, key.split("/")):
        if not isinstance(node, h5py.Group):
            raise KeyError(f"{key}: {node.name} is no group")
        link = node.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise FaultError("malformed", f"{key} is a link into another file, which is refused")
        if isinstance(link, h5py.SoftLink):
            _check_soft(file, node, link.path, key)
        node = node[name]
    return node


def _check_soft(file: h5py.File, node: h5py.Group, target: str, key: str) -> None:
    """Follows a chain of soft links as HDF5 would, to refuse an external one in it."""
    for _ in range(_LONGEST_CHAIN):
        parent, _, last = target.rstrip("/").rpartition("/")
        top: Any = file if target.startswith("/") else node
        for name in filter(None, parent.split("/")):
            link = top.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise FaultError("malformed", f"{key}: a link leads through another link")
            top = top[name]
        link = top.get(last, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise FaultError("malformed", f"{key} is a link into another file, which is refused")
        if not isinstance(link, h5py.SoftLink):
            return
        node, target = top, link.path
    raise FaultError("malformed", f"{key}: its links lead in a circle")


def _check_strings(file: h5py.File, dtype: Any) -> None:
    """Refuses a file with a damaged heap, where values of this type would be read from one."""
    if _has_references(dtype):
        path = Path(file.filename)
        status = path.stat()
        _check_heap(path, status.st_size, status.st_mtime_ns)


def _has_references(dtype: Any) -> bool:
    """True where values lie in the global heap: strings and arrays of variable length."""
    if dtype.fields:
        return any(_has_references(field[0]) for field in dtype.fields.values())
    if dtype.subdtype:
        return _has_references(dtype.subdtype[0])
    return dtype.hasobject


@functools.lru_cache(_KNOWN_FILES)
def _check_heap(path: Path, _size: int, _modified_ns: int) -> None:
    """Refuses a file with a heap in which the HDF5 library would loop for ever.

    The library trusts an object's size: one of 0 bytes in the free space is met again and again.
    A checked heap is skipped as one, so images in it are not read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(_HEAP)
        while place >= 0:
            size = int.from_bytes(content[place + 8 : place + 16], "little")
            if size < _HEAP_HEAD or place + size > len(content):
                place = content.find(_HEAP, place + 1)  # these bytes begin no heap
                continue
            if not _walk_ends(content, place + _HEAP_HEAD, place + size):
                raise FaultError(
                    "unreadable", f"the heap of strings at byte {place} of {path.name} is damaged"
                )
            place = content.find(_HEAP, place + size)


def _walk_ends(content: mmap.mmap, place: int, end: int) -> bool:
    """True where the objects of a collection follow one another up to its end."""
    while end - place >= _OBJECT_HEAD:
        head = content[place : place + _OBJECT_HEAD]
        number, size = int.from_bytes(head[:2], "little"), int.from_bytes(head[8:], "little")
        step = _OBJECT_HEAD + -(-size // 8) * 8 if number else size  # free space counts its head
        if step <= 0 or place + step > end:
            return False
        place += step
    return True
