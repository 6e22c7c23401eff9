"""Reads HDF5 episodes in the layout of ACT and ALOHA, or of robomimic, as a `Recording`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.faults import FaultError, needs
from data.images import ENCODED, MAGIC, image_form
from data.inference.recording import (
    ACTION,
    EPISODES,
    Float64,
    Recording,
    Shots,
    channel_orders,
    evenly,
    joined_states,
    last,
    looked_at_first,
    prefix_of,
    shots_of,
)
from data.readers.hdf5 import Hdf5Images, check_present
from data.readers.hdf5_files import (
    DEMOS,
    Hdf5Episode,
    all_values,
    find_episodes,
    stored_attribute,
    stored_item,
)
from data.texts import recorded_texts

with needs("data"):
    import h5py

MOST_COLUMNS = 64  # of an array that a robot may have as its state
QPOS = "observations/qpos"  # of ACT and ALOHA
ACTIONS = (ACTION, "actions")
RATES = ("fps", "rate_hz", "hz", "frequency", "control_freq", "control_frequency")  # attributes
TEXT = re.compile(r"instruction|language|(?:^|_)(?:lang|task|prompt)(?:$|_)", re.IGNORECASE)
CLOCK = re.compile(r"^(?:time_?stamps?|times?)(?:_s)?$", re.IGNORECASE)
ENVIRONMENT = "env_args"  # of robomimic's group of episodes: JSON about the environment
ROBOSUITE = 1  # type of an environment there
QUATERNION_OF_ROBOSUITE = ("qx", "qy", "qz", "qw")  # its observations have the scalar last
LEFT_OUT = ("next_obs/", "states", "rewards", "dones", "policy_mode", "compress_len")


@dataclass(frozen=True)
class _Contents:
    """Keys of the first episode, by what they hold."""

    arrays: Mapping[str, int]  # -> columns
    cameras: Mapping[str, bool]  # -> True for encoded files
    texts: tuple[str, ...]
    clocks: tuple[str, ...]


def read_hdf5(path: Path, episodes: int = EPISODES) -> Recording:
    """Reads some episodes of a folder of HDF5 files, or of one file.

    Raises:
        ValueError, OSError: there is none, or they do not fit together.
    """
    places = find_episodes(path)
    if not places:
        raise ValueError(f"{path} has no .hdf5 or .h5 file with an episode")
    chosen = evenly(len(places), episodes)
    order, shown = looked_at_first(len(chosen))
    picked = [places[chosen[place]] for place in order]
    try:
        with h5py.File(picked[0].path) as file:
            contents = _contents(file, picked[0])
            rate, rate_from, robot, simulated = _facts(file, picked[0])
        if not contents.cameras or not contents.arrays:
            missing = "images of a camera" if not contents.cameras else "array of numbers"
            raise ValueError(f"{picked[0].name} has no {missing}")
        read = [_episode(place, contents, looked_at=i < shown) for i, place in enumerate(picked)]
    except (LookupError, FaultError) as error:
        raise ValueError(f"{path}: {error.args[0]}") from error
    arrays = {key: tuple(one.arrays[key] for one in read) for key in contents.arrays}
    return Recording(
        name=path.stem if path.is_file() else path.name,
        storage="hdf5",
        root=path if path.is_dir() else path.parent,
        robot_type=robot,
        rate_hz=rate,
        rate_from=rate_from,
        arrays=arrays,
        names=_names(contents.arrays, simulated=simulated),
        states=_states(contents.arrays),
        action=next((key for key in ACTIONS if key in contents.arrays), ""),
        clocks=tuple(one.clock for one in read if one.clock is not None),
        shots={key: tuple(one.shots[key] for one in read[:shown]) for key in contents.cameras},
        texts=tuple(one.text for one in read),
        text_key=contents.texts[0] if contents.texts else "",
        rgb=simulated,
        channel_orders=channel_orders(contents.cameras.values()),
    )


@dataclass(frozen=True)
class _Read:
    """Content of one episode."""

    arrays: Mapping[str, Float64]
    clock: Float64 | None
    text: str
    shots: Mapping[str, Shots]


def _episode(place: Hdf5Episode, contents: _Contents, *, looked_at: bool) -> _Read:
    with h5py.File(place.path) as file:
        check_present(file, [place.key(key) for key in (*contents.arrays, *contents.cameras)])
        arrays = {key: _rows(file, place.key(key)) for key in contents.arrays}
        lengths = {key: len(rows) for key, rows in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{place.name} has arrays of unequal length: {lengths}")
        clock = next((_rows(file, place.key(key))[:, 0] for key in contents.clocks), None)
        text = next((_text(file, place.key(key)) for key in contents.texts), "")
        views = {
            key: Hdf5Images.open(file, place.path, place.key(key))
            for key in (contents.cameras if looked_at else ())
        }
    return _Read(arrays, clock, text, {key: shots_of(view) for key, view in views.items()})


def _rows(file: h5py.File, key: str) -> Float64:
    values = np.asarray(all_values(file, key), np.float64)
    return values.reshape(len(values), -1)


def _text(file: h5py.File, key: str) -> str:
    stored = stored_attribute(file, key)
    texts = recorded_texts(all_values(file, key) if stored is None else stored, key)
    return texts[0] if texts else ""


def _contents(file: h5py.File, place: Hdf5Episode) -> _Contents:
    """Sorts the arrays of an episode by their types, shapes and names."""
    group: Any = stored_item(file, place.group)
    sets: dict[str, h5py.Dataset] = {}
    # hard links alone are visited, so nothing leads out of the file
    group.visititems(lambda name, item: _note(sets, name, item))
    sets = {key: array for key, array in sets.items() if not key.startswith(LEFT_OUT)}
    action = next((sets[key] for key in ACTIONS if key in sets), None)
    frames = max((len(array) for array in sets.values() if array.shape), default=0)
    frames = frames if action is None or not action.shape else len(action)
    per_frame = {k: a for k, a in sets.items() if a.shape and len(a) == frames}
    cameras = {k: form == ENCODED for k, a in per_frame.items() if (form := _image_form(a))}
    numbers = {
        key: int(np.prod(array.shape[1:]))
        for key, array in per_frame.items()
        if key not in cameras and array.dtype.kind in "fiub" and array.ndim <= 3
    }
    clocks = tuple(key for key, width in numbers.items() if width == 1 and CLOCK.search(last(key)))
    texts = [key for key, array in sets.items() if _is_text(array) and TEXT.search(last(key))]
    texts += [
        str(name)
        for name, value in group.attrs.items()
        if TEXT.search(str(name)) and isinstance(value, str | bytes)
    ]
    arrays = {k: w for k, w in numbers.items() if 0 < w <= MOST_COLUMNS and k not in clocks}
    return _Contents(arrays, cameras, tuple(dict.fromkeys(texts)), clocks)


def _note(sets: dict[str, h5py.Dataset], name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
        sets[str(name)] = item


def _image_form(array: h5py.Dataset) -> str:
    """Form of the images of a camera; empty for what is none."""
    dtype, shape = array.dtype, array.shape[1:]
    if dtype == np.uint8 and len(shape) == 3:
        try:
            return image_form(dtype, shape, "")
        except FaultError:
            return ""
    row = dtype == np.uint8 and len(shape) == 1 and shape[0] > MOST_COLUMNS
    if row or (not shape and dtype.kind in "SO"):
        first: Any = array[0] if dtype.kind != "O" or _known_length(dtype) else b""
        data = first.encode(errors="replace") if isinstance(first, str) else bytes(first)
        return ENCODED if data.startswith(MAGIC) else ""
    return ""


def _known_length(dtype: Any) -> bool:
    return h5py.check_vlen_dtype(dtype) is not None or h5py.check_string_dtype(dtype) is not None


def _is_text(array: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(array.dtype) is not None and array.ndim <= 1


def _facts(file: h5py.File, place: Hdf5Episode) -> tuple[float | None, str, str, bool]:
    """Rate and what states it, the robot's name, and whether robosuite rendered the images."""
    about: Any = stored_attribute(file, f"{DEMOS}/{ENVIRONMENT}")
    try:
        about = json.loads(about) if isinstance(about, str | bytes) else {}
    except ValueError:
        about = {}
    more = about.get("env_kwargs") if isinstance(about, dict) else None
    more = more if isinstance(more, dict) else {}
    robots = more.get("robots")
    robot = robots[0] if isinstance(robots, list) and robots else robots
    simulated = isinstance(about, dict) and about.get("type") == ROBOSUITE
    rates = {f"control_freq of {ENVIRONMENT} states": more.get("control_freq")}
    for name in RATES:
        for key in dict.fromkeys((place.key(name), name)):
            rates[f"the attribute {key} states"] = stored_attribute(file, key)
    for source, value in rates.items():
        number = np.asarray(0.0 if value is None else value)
        if number.dtype.kind in "fiu" and number.size == 1 and float(number.item()) > 0:
            return float(number.item()), source, str(robot or ""), simulated
    return None, "", str(robot or ""), simulated


def _states(arrays: Mapping[str, int]) -> tuple[str, ...]:
    if QPOS in arrays:
        return (QPOS,)
    return joined_states({k: w for k, w in arrays.items() if not k.startswith("action")})


def _names(arrays: Mapping[str, int], *, simulated: bool) -> dict[str, tuple[str, ...]]:
    """Names of the columns that robosuite's own conventions give."""
    return {
        key: tuple(f"{prefix_of(key)}{name}" for name in QUATERNION_OF_ROBOSUITE)
        for key, width in arrays.items()
        if simulated and width == 4 and key.endswith("eef_quat")
    }
