"""Where the episodes of a LeRobot dataset lie: format v2.1, v3, and AgiBot World's meta file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from data.lerobot_forms import (
    AGIBOT_ENTRY,
    INFO_2,
    INFO_3,
    INFO_FORM,
    ROW_2,
    ROW_3,
    VIDEO_ROW_3,
)
from data.meta_files import MetaFile, find_meta_file
from data.places import Places, fill_template
from data.spec import DatasetSpec
from data.typed_json import read_json, typed

INFO = Path("meta") / "info.json"
# AgiBot World has LeRobot's folders, but no index of its own
AGIBOT_CHUNK_SIZE = 1000
AGIBOT_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
AGIBOT_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


@dataclass(frozen=True)
class VideoPlace:
    """A video file, and where in it the episode starts; None: the file is the episode's own."""

    path: Path
    start_s: float | None = None


@dataclass(frozen=True)
class EpisodeFiles:
    """One episode: its table, its videos by view, and what is said of it."""

    name: str
    number: int
    table: Path
    shared: bool  # other episodes are in the same table
    videos: Mapping[str, VideoPlace]
    instruction: str
    span: tuple[int, int] | None = None

    def shared_with(self, episodes: Sequence[EpisodeFiles]) -> pc.Expression | None:
        """The filter for the rows of `episodes`; None where the table has no others."""
        if not self.shared:
            return None
        return pc.field("episode_index").isin([episode.number for episode in episodes])

    def rows(self, table: pa.Table) -> pa.Table:
        """The rows of this episode in a table that was read, by frame."""
        if not self.shared:
            return table
        mine = table.filter(pc.field("episode_index") == self.number)
        return mine.sort_by("frame_index")


@dataclass(frozen=True)
class _Folder:
    """A folder of episodes, the file that names what is in it, and where that may lie."""

    path: Path
    index: Path
    places: Places

    def file(self, template: Any, values: Mapping[str, Any]) -> Path:
        """The file of a path template; a ValueError where it leads elsewhere."""
        return self.places.path(self.path, fill_template(template, values, self.index), self.index)


@dataclass(frozen=True)
class LeRobotIndex:
    """All episodes, the files that list them, and the paraphrases of their instructions."""

    episodes: tuple[EpisodeFiles, ...]
    files: tuple[Path, ...]
    paraphrases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_index(
    spec: DatasetSpec, root: epath.PathLike, places: Places | None = None
) -> LeRobotIndex:
    """The index of the dataset of `spec` at <root>/<storage_name> or at <root> itself.

    Raises:
        FileNotFoundError: neither LeRobot's meta/info.json nor a meta file of X-VLA is there.
        ValueError: an unknown version, another recording rate, or no episode.
    """
    for folder in (Path(root) / spec.storage_name, Path(root)):
        path = folder / INFO
        if path.is_file():
            return _lerobot(spec, path, places or Places.of(root))
    meta = find_meta_file(root, spec.storage_name, places)
    return LeRobotIndex(
        tuple(_agibot_episode(spec, meta, entry) for entry in meta.entries),
        (meta.path,),
        meta.paraphrases,
    )


def _lerobot(spec: DatasetSpec, path: Path, places: Places) -> LeRobotIndex:
    info: Any = read_json(path)
    typed(INFO_FORM, info, path)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise ValueError(
            f"{path} has codebase_version {version!r}; readable are {', '.join(VERSIONS)}"
        )
    if info.get("fps", spec.rate_hz) != spec.rate_hz:
        raise ValueError(
            f"{path} was recorded at {info['fps']} Hz, but dataset row {spec.name!r} has rate_hz "
            f"{spec.rate_hz} (data/datasets.py)"
        )
    episodes = VERSIONS[version](spec, path, info, places)
    if not episodes:
        raise ValueError(f"{path} lists no episode")
    paraphrases = {text: tuple(found) for text, found in info.get("lang_aug_map", {}).items()}
    lists = sorted(f for f in path.parent.rglob("*") if f.suffix in (".json", ".jsonl", ".parquet"))
    return LeRobotIndex(tuple(episodes), tuple(lists), paraphrases)


def _version_2(
    spec: DatasetSpec, path: Path, info: Mapping[str, Any], places: Places
) -> list[EpisodeFiles]:
    typed(INFO_2, info, path)
    top = places.path(path.parent.parent, info.get("root_path") or "", path)
    return [
        _own_files(
            spec,
            _Folder(top, path, places),
            (info["data_path"], info.get("video_path") or ""),
            number=episode["episode_index"],
            chunk_size=info["chunks_size"],
            instruction=_first_task(episode["tasks"]),
        )
        for episode in _lines(path.parent / "episodes.jsonl")
    ]


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The episodes of a list with a JSON object in each line."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                episode = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
            yield typed(ROW_2, episode, f"{path}, line {number}")


def _version_3(
    spec: DatasetSpec, path: Path, info: Mapping[str, Any], places: Places
) -> list[EpisodeFiles]:
    typed(INFO_3, info, path)
    top = _Folder(path.parent.parent, path, places)
    files = sorted((path.parent / "episodes").glob("*/*.parquet"))
    rows = [typed(ROW_3, row, file) and row for file in files for row in _episode_rows(file)]
    found = []
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        videos = {
            key: _shared_video(top, info.get("video_path"), key, row)
            for key in spec.views
            if row.get(f"videos/{key}/file_index") is not None
        }
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = top.file(info["data_path"], place)
        found.append(
            EpisodeFiles(
                name=f"{table}#{row['episode_index']}",
                number=row["episode_index"],
                table=table,
                shared=True,
                videos=videos,
                instruction=_first_task(row["tasks"]),
            )
        )
    return found


def _shared_video(top: _Folder, template: Any, key: str, row: Mapping[str, Any]) -> VideoPlace:
    video = {
        name.rpartition("/")[2]: row.get(name) for name in row if name.startswith(f"videos/{key}/")
    }
    typed(VIDEO_ROW_3, video, top.index.parent / "episodes", f"videos/{key}")
    place = {
        "video_key": key,
        "chunk_index": row[f"videos/{key}/chunk_index"],
        "file_index": row[f"videos/{key}/file_index"],
    }
    return VideoPlace(top.file(template, place), float(row[f"videos/{key}/from_timestamp"]))


def _episode_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a v3 episode table without its statistics."""
    names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
    return pq.read_table(file, columns=names).to_pylist()


def _agibot_episode(spec: DatasetSpec, meta: MetaFile, entry: Mapping[str, Any]) -> EpisodeFiles:
    typed(AGIBOT_ENTRY, entry, meta.path, "datalist")
    actions = entry["action_config"]
    return _own_files(
        spec,
        _Folder(meta.resolve(entry["top_path"]), meta.path, meta.places),
        (AGIBOT_DATA, AGIBOT_VIDEO),
        number=entry["episode_index"],
        chunk_size=AGIBOT_CHUNK_SIZE,
        instruction=_first_task(entry["tasks"]),
        span=(actions[0]["start_frame"], actions[-1]["end_frame"]) if actions else None,
    )


def _own_files(
    spec: DatasetSpec,
    top: _Folder,
    templates: tuple[str, str],
    *,
    number: int,
    chunk_size: int,
    instruction: str,
    span: tuple[int, int] | None = None,
) -> EpisodeFiles:
    """An episode with a table and videos of its own."""
    place = {"episode_chunk": number // chunk_size, "episode_index": number}
    data_path, video_path = templates
    table = top.file(data_path, place)
    videos = {
        key: VideoPlace(top.file(video_path, {"video_key": key, **place}))
        for key in spec.views
        if video_path
    }
    return EpisodeFiles(
        name=str(table),
        number=number,
        table=table,
        shared=False,
        videos=videos,
        instruction=instruction,
        span=span,
    )


def _first_task(tasks: Sequence[str]) -> str:
    return tasks[0] if len(tasks) else ""


VERSIONS = {"v2.1": _version_2, "v3.0": _version_3}
