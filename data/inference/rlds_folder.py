"""Reads an RLDS set, a folder of tfds, as a `Recording`; by the pipeline that trains on it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import NDArray

from data.faults import FaultError, needs
from data.images import ENCODED, image_form, stored_images
from data.inference.recording import (
    ACTION,
    EPISODES,
    STATE,
    Float64,
    Recording,
    channel_orders,
    evenly,
    joined_states,
    last,
    looked_at_first,
    shots_of,
)
from data.readers.rlds import (
    IN_FILE_ORDER,
    MANIFEST_NAME,
    METADATA,
    SPLIT,
    DLataset,
    select,
)
from data.readers.tfds_folders import (
    Leaf,
    is_packed,
    leaves_by_key,
    open_builder,
    unpacked,
    version_folder,
)
from data.trajectory import NUMBERS
from data.untrusted import read_json

with needs("data"):
    import tensorflow as tf
    import tensorflow_datasets as tfds

MOST_COLUMNS = 64  # of an array that a robot may have as its state
TEXT = re.compile(r"instruction|language", re.IGNORECASE)
TEXT_FIRST = ("language_instruction", "observation.natural_language_instruction")
CLOCK = re.compile(r"^time_?stamps?(?:_s)?$", re.IGNORECASE)
LEFT_OUT = ("reward", "discount", "is_first", "is_last", "is_terminal")


@dataclass(frozen=True)
class _Contents:
    """Features of the steps by key, by what they hold; texts may be of the episode."""

    numbers: dict[str, Leaf]
    cameras: dict[str, Leaf]
    texts: dict[str, tuple[str, ...]]  # -> path in a trajectory
    clocks: dict[str, Leaf]


def read_rlds(folder: Path, episodes: int = EPISODES) -> Recording:
    """Reads some episodes of the highest version of an RLDS set.

    Args:
        folder: of the set, or of one of its versions.
        episodes: at most so many, evenly spaced over the split.

    Raises:
        ValueError, OSError: it is no such folder, or an episode cannot be read.
    """
    named = folder.parent if tfds.core.Version.is_valid(folder.name) else folder
    place = version_folder(named.parent, named.name)
    if folder != named and Path(place) != folder:
        raise ValueError(
            f"{folder} is not the highest version; a row reads that one, {Path(place).name}: give "
            f"{named}, or move the other version away"
        )
    builder = open_builder(place)
    split = _split(builder, place)
    contents = _contents(builder, place)
    count = builder.info.splits[split].num_examples
    chosen = evenly(count, episodes)
    order, shown = looked_at_first(len(chosen))
    read = _episodes(builder, split, chosen, contents, {chosen[i] for i in order[:shown]})
    read = [read[place] for place in order]
    texts = list(contents.texts)
    encoded = [_is_file(leaf.feature) for leaf in contents.cameras.values()]
    return Recording(
        name=named.name,
        storage="rlds",
        root=named.parent,
        rate_hz=_rate(place),
        rate_from=f"{MANIFEST_NAME} states",
        arrays={key: tuple(_rows(one[key]) for one in read) for key in contents.numbers},
        states=_states(contents),
        action=ACTION if ACTION in contents.numbers else "",
        clocks=tuple(_rows(one[key])[:, 0] for one in read for key in list(contents.clocks)[:1]),
        shots={
            key: tuple(shots_of(stored_images(one[key], key)) for one in read[:shown])
            for key in contents.cameras
        },
        texts=tuple(_text(one[texts[0]]) if texts else "" for one in read),
        text_key=texts[0] if texts else "",
        rgb=all(encoded),  # tfds encodes arrays that it takes for RGB
        channel_orders=channel_orders(encoded),
        splits=() if split == SPLIT else (split,),
    )


def _split(builder: Any, place: epath.Path) -> str:
    """The training split, or the only one."""
    splits = list(builder.info.splits)
    if SPLIT in splits or len(splits) == 1:
        split = SPLIT if SPLIT in splits else splits[0]
        if builder.info.splits[split].num_examples:
            return split
    raise ValueError(
        f"{place} has the splits {', '.join(splits) or 'none'}; needed is {SPLIT}, or one alone, "
        "with an episode"
    )


def _contents(builder: Any, place: epath.Path) -> _Contents:
    top = builder.info.features
    features = dict(top.items()) if isinstance(top, tfds.features.FeaturesDict) else {}
    steps = features.pop("steps", None)
    if not isinstance(steps, tfds.features.Dataset):
        raise ValueError(f"{place} is no RLDS set: it has no dataset of steps")
    leaves, of_episode = _plain(steps.feature), _plain(features)
    cameras = {key: leaf for key, leaf in leaves.items() if _is_camera(leaf.feature)}
    numbers = {
        key: leaf
        for key, leaf in leaves.items()
        if key not in cameras and key not in LEFT_OUT and _width(leaf.feature)
    }
    clocks = {
        key: leaf
        for key, leaf in numbers.items()
        if CLOCK.search(last(key)) and _width(leaf.feature) == 1
    }
    numbers = {key: leaf for key, leaf in numbers.items() if key not in clocks}
    texts = {key: leaf.path for key, leaf in leaves.items() if _is_text(leaf.feature, key)}
    texts |= {
        key: (METADATA, *leaf.path)
        for key, leaf in of_episode.items()
        if key not in texts and _is_text(leaf.feature, key)
    }
    first = [key for key in TEXT_FIRST if key in texts]
    texts = {key: texts[key] for key in dict.fromkeys([*first, *texts])}
    if not cameras or not numbers:
        missing = "feature of images" if not cameras else "feature of numbers"
        raise ValueError(f"{place} has no {missing} among its steps: {', '.join(leaves)}")
    return _Contents(numbers, cameras, texts, clocks)


def _plain(features: Any) -> dict[str, Leaf]:
    """Features by key that are one tensor or image each, sorted: tfds has them in any order."""
    kinds = (tfds.features.Tensor, tfds.features.Image)
    leaves = sorted(leaves_by_key(features).items())
    return {key: leaf for key, leaf in leaves if isinstance(leaf.feature, kinds)}


def _is_camera(feature: Any) -> bool:
    dtype, shape = np.dtype(feature.np_dtype), tuple(feature.shape)
    if _is_file(feature):
        return dtype == np.uint8 and shape[-1] == 3
    plain = dtype == np.uint8 and len(shape) == 3 and None not in shape and not is_packed(feature)
    try:
        return plain and image_form(dtype, shape, "") != ENCODED
    except FaultError:
        return False


def _is_file(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image)


def _width(feature: Any) -> int:
    """Columns of a feature of numbers; 0 where it is none, or none of a robot's."""
    shape = tuple(feature.shape)
    if np.dtype(feature.np_dtype).kind not in NUMBERS or None in shape or len(shape) > 2:
        return 0
    width = math.prod(shape)
    return width if width <= MOST_COLUMNS else 0


def _is_text(feature: Any, key: str) -> bool:
    is_string = np.dtype(feature.np_dtype).kind == "O" and tuple(feature.shape) == ()
    return is_string and bool(TEXT.search(last(key)))


def _episodes(
    builder: Any, split: str, chosen: list[int], contents: _Contents, looked_at: set[int]
) -> list[dict[str, NDArray[Any]]]:
    """Arrays of the chosen episodes; images of those looked at alone."""
    numbers = {key: leaf.path for key, leaf in (contents.numbers | contents.clocks).items()}
    numbers |= contents.texts
    images = {key: leaf.path for key, leaf in contents.cameras.items()}
    # two functions for all episodes, so that each is traced once
    take, take_with_images = (partial(select, paths=p) for p in (numbers, numbers | images))
    read: list[dict[str, NDArray[Any]]] = []
    try:
        for number in chosen:
            stretch = f"{split}[{number}:{number + 1}]"
            chain = DLataset.from_rlds(builder, split=stretch, shuffle=False)
            chain = chain.traj_map(take_with_images if number in looked_at else take)
            read.append(next(chain.with_options(IN_FILE_ORDER).iterator()))
    except (tf.errors.OpError, StopIteration) as error:
        raise ValueError(
            f"episode {chosen[len(read)]} of {split} cannot be read; python -m "
            "scripts.inspect_data says why"
        ) from error
    for raw in read:
        for key, leaf in contents.numbers.items():
            if is_packed(leaf.feature):
                raw[key] = unpacked(raw[key], leaf.feature, key)
    return read


def _rows(values: NDArray[Any]) -> Float64:
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _text(values: NDArray[Any]) -> str:
    first = values.reshape(-1)[0] if values.size else b""
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)


def _rate(place: epath.Path) -> float | None:
    """The rate that a recording of ours states beside the set."""
    path = place / MANIFEST_NAME
    stated = read_json(path).get("rate_hz") if path.exists() else None
    return float(stated) if isinstance(stated, int | float) and stated > 0 else None


def _states(contents: _Contents) -> tuple[str, ...]:
    if STATE in contents.numbers:
        return (STATE,)
    return joined_states(
        {
            key: _width(leaf.feature)
            for key, leaf in contents.numbers.items()
            if not key.startswith("action")
        }
    )
