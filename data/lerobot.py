"""Reader for LeRobot datasets (parquet and MP4): format v2.1, v3, and AgiBot World.

Where the episodes lie is told by data/lerobot_index.py. A part is one episode, or with v3 a few
neighbours in the same parquet file. Only the columns of the row are read; videos are opened when a
sample is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from numpy.typing import NDArray

from data.faults import BadEpisodeError, FaultError, attempt
from data.lerobot_index import EpisodeFiles, read_index
from data.places import Places
from data.spec import DatasetSpec
from data.trajectory import Pictures, Trajectory, standard_trajectory
from data.videos import VideoPictures

MAX_EPISODES_PER_PART = 20
LIST_TYPES = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class LeRobotReader:
    """A LeRobot dataset, opened for a dataset row.

    Raises:
        FileNotFoundError: no index of a dataset under `root`.
        ValueError: the index or the first episode does not fit the row.
    """

    def __init__(
        self, spec: DatasetSpec, root: epath.PathLike, places: Places | None = None
    ) -> None:
        self.spec = spec
        index = read_index(spec, root, places)
        self.index_files = index.files
        self._paraphrases = index.paraphrases
        self._parts = _parts(index.episodes)
        self.episodes_per_part = tuple(len(part) for part in self._parts)
        self._check_first(index.episodes[0])

    def read(self, part: int) -> Iterator[Trajectory | BadEpisodeError]:
        """The trajectories of one part, in the order of the index."""
        episodes = self._parts[part]
        table = attempt(self.spec.name, episodes[0].name, partial(self._read_table, episodes))
        if isinstance(table, BadEpisodeError):
            for episode in episodes:
                yield BadEpisodeError(self.spec.name, episode.name, table.kind, table.reason)
            return
        for episode in episodes:
            yield attempt(self.spec.name, episode.name, partial(self._trajectory, episode, table))

    def _read_table(self, episodes: list[EpisodeFiles]) -> pa.Table:
        path = episodes[0].table
        columns = self._columns(pq.read_schema(path))
        return pq.read_table(path, columns=columns, filters=episodes[0].shared_with(episodes))

    def _trajectory(self, episode: EpisodeFiles, shared: pa.Table) -> Trajectory:
        table = episode.rows(shared)
        return standard_trajectory(
            {key: column_array(table, key) for key in self.spec.state_keys},
            self.spec,
            episode.name,
            instruction=episode.instruction,
            images=tuple(self._view(episode, key, table) for key in self.spec.views),
            span=episode.span,
            paraphrases=self._paraphrases,
        )

    def _view(self, episode: EpisodeFiles, key: str, table: pa.Table) -> Pictures:
        if key in table.column_names:
            return _stored_pictures(table, key)
        if key not in episode.videos:
            raise FaultError("missing_key", f"{key} is neither a column nor a video")
        video = episode.videos[key]
        if video.start_s is None:
            return VideoPictures(video.path)
        rate = self.spec.rate_hz
        times = video.start_s + np.arange(len(table)) / rate
        return VideoPictures(video.path, times=times, rate_hz=rate)

    def _columns(self, schema: pa.Schema) -> list[str]:
        wanted = [*self.spec.state_keys, *self.spec.views, "episode_index", "frame_index"]
        return [key for key in wanted if key in schema.names]

    def _check_first(self, episode: EpisodeFiles) -> None:
        names = pq.read_schema(episode.table).names
        missing = [key for key in self.spec.state_keys if key not in names]
        missing += [
            key for key in self.spec.views if key not in names and key not in episode.videos
        ]
        if missing:
            raise ValueError(
                f"dataset row {self.spec.name!r} reads {', '.join(missing)}, which "
                f"{episode.table} does not have; it has {', '.join(names)} (data/datasets.py)"
            )


def column_array(table: pa.Table, key: str) -> NDArray[Any]:
    """A numeric column as an array [T, ...], its lists flattened to [T, columns].

    Raises:
        ValueError: no such column, no rows, or some are missing or of unequal length.
    """
    if key not in table.column_names:
        raise FaultError(
            "missing_key", f"{key} is missing; there is {', '.join(table.column_names)}"
        )
    values: Any = table.column(key).combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while any(is_list(values.type) for is_list in LIST_TYPES):
        fixed = pa.types.is_fixed_size_list(values.type)
        lengths = [values.type.list_size] if fixed else values.value_lengths().unique().to_pylist()
        if values.null_count or len(lengths) != 1:
            raise ValueError(f"{key}: rows of {', '.join(map(str, lengths)) or 'no'} numbers")
        values = values.flatten()
    if len(table) == 0:
        raise ValueError(f"{key}: no rows")
    return values.to_numpy(zero_copy_only=False).reshape(len(table), -1)


def _stored_pictures(table: pa.Table, key: str) -> NDArray[np.object_]:
    """Pictures kept in the table itself: bytes, or a structure with the field "bytes"."""
    column = table.column(key).combine_chunks()
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    pictures = np.empty(len(column), object)
    pictures[:] = column.to_pylist()
    return pictures


def _parts(episodes: tuple[EpisodeFiles, ...]) -> list[list[EpisodeFiles]]:
    """Neighbours that share a file together, at most so many."""
    parts: list[list[EpisodeFiles]] = []
    for episode in episodes:
        last = parts[-1] if parts else []
        if last and last[0].table == episode.table and len(last) < MAX_EPISODES_PER_PART:
            last.append(episode)
        else:
            parts.append([episode])
    return parts
