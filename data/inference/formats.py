"""Formats of recordings that `scripts.new_robot` reads: LeRobot, RLDS, and HDF5 by file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from data.inference.recording import Recording
from data.readers.hdf5_files import SUFFIXES
from data.readers.lerobot_index import INFO

INFO_NAME = "dataset_info.json"  # as data.readers.tfds_folders, which loads TensorFlow
VERSION = re.compile(r"\d+\.\d+\.\d+")  # name of a folder of tfds


def read_recording(place: Path) -> Recording:
    """Reads some episodes of a LeRobot folder, an RLDS set, or a folder or file of HDF5.

    Raises:
        ValueError: it is none of them, or its files do not fit together.
    """
    for is_one, read in FORMATS:
        if is_one(place):
            return read()(place)
    raise ValueError(
        f"{place} is no recording that is read: it has neither {INFO} (LeRobot), nor {INFO_NAME} "
        f"in it or in a folder of a version (RLDS), nor files {' or '.join(SUFFIXES)} (ACT, ALOHA, "
        "robomimic)"
    )


def _is_lerobot(place: Path) -> bool:
    return (place / INFO).is_file()


def _is_rlds(place: Path) -> bool:
    versions = [p for p in place.iterdir() if VERSION.fullmatch(p.name)] if place.is_dir() else []
    return any((folder / INFO_NAME).is_file() for folder in (place, *versions))


def _is_hdf5(place: Path) -> bool:
    files = place.iterdir() if place.is_dir() else (place,)
    return any(file.suffix in SUFFIXES and file.is_file() for file in files)


def _lerobot() -> Callable[[Path], Recording]:
    from data.inference.lerobot_folder import read_lerobot

    return read_lerobot


def _rlds() -> Callable[[Path], Recording]:
    from data.inference.rlds_folder import read_rlds  # loads TensorFlow

    return read_rlds


def _hdf5() -> Callable[[Path], Recording]:
    from data.inference.hdf5_folder import read_hdf5

    return read_hdf5


FORMATS = ((_is_lerobot, _lerobot), (_is_rlds, _rlds), (_is_hdf5, _hdf5))
