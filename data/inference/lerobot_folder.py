"""Reads a LeRobot folder, v2.0, v2.1 or v3, as a `Recording`; by the reader that trains on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.faults import BadEpisodeError, FaultError, needs
from data.inference.recording import (
    EPISODES,
    Recording,
    Shots,
    evenly,
    looked_at_first,
    shots_of,
)
from data.parts import plain_views
from data.poses.arms import Columns
from data.readers.lerobot import LeRobotReader, column_array
from data.readers.lerobot_index import (
    CAMERA_TYPES,
    INFO,
    INFO_FORM,
    EpisodeFiles,
    channel_names,
    read_index,
)
from data.readers.lerobot_tasks import TASK_INDEX, episode_text, read_tasks
from data.spec import NO_ROTATION, DatasetSpec
from data.trajectory import Trajectory
from data.untrusted import read_json, typed

with needs("data"):
    import pyarrow.parquet as pq

BOOKKEEPING = frozenset({"timestamp", "frame_index", "episode_index", "index", TASK_INDEX})
NUMBERS = ("float32", "float64", "float16")


def read_lerobot(folder: Path, episodes: int = EPISODES) -> Recording:
    """Reads some episodes of a folder that has meta/info.json.

    Raises:
        ValueError, OSError: it is no such folder, or its files do not fit together.
    """
    path = folder / INFO
    info: Any = read_json(path)
    typed(INFO_FORM, info, path)
    if not info.get("fps") or not info.get("features"):
        raise ValueError(f"{path} has no fps or no features")
    features = info["features"]
    cameras = tuple(key for key, value in features.items() if _is_camera(value))
    arrays = tuple(
        key
        for key, value in features.items()
        if value.get("dtype") in NUMBERS and key not in BOOKKEEPING
    )
    if not cameras or not arrays:
        raise ValueError(f"{path} has no {'camera' if not cameras else 'array of numbers'}")
    probe = _probe(folder, float(info["fps"]), arrays[0], cameras)
    index = read_index(probe, folder)
    chosen = evenly(len(index.episodes), episodes)
    tasks = read_tasks(path.parent)
    order, shown = looked_at_first(len(chosen))
    tables = [_table(index.episodes[chosen[place]]) for place in order]
    looked_at = [index.episodes[chosen[place]] for place in order[:shown]]
    return Recording(
        name=folder.name,
        storage="lerobot",
        root=folder,
        robot_type=info.get("robot_type") or "",
        rate_hz=float(info["fps"]),
        arrays={
            key: tuple(column_array(table, key).astype(np.float64) for table in tables)
            for key in arrays
        },
        names={k: v for k, v in channel_names(info).items() if k in arrays},
        clocks=tuple(
            column_array(table, "timestamp")[:, 0].astype(np.float64)
            for table in tables
            if "timestamp" in table.column_names
        ),
        shots=_shots(LeRobotReader(probe, folder), [e.name for e in looked_at], cameras),
        texts=tuple(
            _text(index.episodes[chosen[place]], table, tasks)
            for place, table in zip(order, tables, strict=True)
        ),
        rgb=True,
    )


def _is_camera(feature: Any) -> bool:
    about = feature.get("info") or feature.get("video_info") or {}
    depth = about.get("video.is_depth_map", about.get("is_depth_map", False))
    return feature.get("dtype") in CAMERA_TYPES and not depth


def _probe(folder: Path, rate_hz: float, key: str, cameras: tuple[str, ...]) -> DatasetSpec:
    """A row that reads every camera and one column, since a reader is opened for a row."""
    return DatasetSpec(
        name=folder.name,
        storage="lerobot",
        storage_name=folder.name,
        domain=folder.name,
        instruction_keys=(),
        fixed_instruction="not read",
        arms=(),
        joints=(Columns(key, 0, 1),),
        rotation_layout=NO_ROTATION,
        views=plain_views(*cameras),
        encoded_channel_order="rgb",
        proprio="measured",
        rate_hz=rate_hz,
        window_s=1.0,
        index_margin=1,
        delta_idx=(),
        mask_proprio_idx=(),
        static_epsilon=0.0,
        augment="none",
    )


def _table(episode: EpisodeFiles) -> Any:
    return episode.rows(pq.read_table(episode.table, filters=episode.shared_with([episode])))


def _text(episode: EpisodeFiles, table: Any, tasks: Any) -> str:
    numbers = column_array(table, TASK_INDEX) if TASK_INDEX in table.column_names else None
    try:
        text = episode_text(episode.tasks, tasks, numbers)
    except FaultError:
        return ""
    one = text if isinstance(text, str) else next(iter(text or ()), "")
    return one if isinstance(one, str) else ""


def _shots(
    reader: LeRobotReader, names: list[str], cameras: tuple[str, ...]
) -> dict[str, tuple[Shots, ...]]:
    by_name = {t.episode: t for t in _trajectories(reader, set(names))}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"{missing[0]} cannot be read; python -m scripts.inspect_data says why")
    return {
        camera: tuple(shots_of(by_name[name].images[view]) for name in names)
        for view, camera in enumerate(cameras)
    }


def _trajectories(reader: LeRobotReader, names: set[str]) -> Iterator[Trajectory]:
    for part in range(len(reader.episodes_per_part)):
        for trajectory in reader.read(part):
            if isinstance(trajectory, BadEpisodeError) or trajectory.episode not in names:
                continue
            names.discard(trajectory.episode)
            yield trajectory
        if not names:
            return
