"""Where the episodes of a LeRobot dataset lie: format v2.1, v3, and AgiBot World's meta file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from data.extras import needs
from data.meta_files import MetaFile, find_meta_file
from data.spec import DatasetSpec

with needs("data"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

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
class LeRobotIndex:
    """All episodes, the files that list them, and the paraphrases of their instructions."""

    episodes: tuple[EpisodeFiles, ...]
    files: tuple[Path, ...]
    paraphrases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_index(spec: DatasetSpec, root: epath.PathLike) -> LeRobotIndex:
    """The index of the dataset of `spec` at <root>/<storage_name> or at <root> itself.

    Raises:
        FileNotFoundError: neither LeRobot's meta/info.json nor a meta file of X-VLA is there.
        ValueError: an unknown version, another recording rate, or no episode.
    """
    for folder in (Path(root) / spec.storage_name, Path(root)):
        path = folder / INFO
        if path.is_file():
            return _lerobot(spec, path)
    meta = find_meta_file(root, spec.storage_name)
    return LeRobotIndex(
        tuple(_agibot_episode(spec, meta, entry) for entry in meta.entries),
        (meta.path,),
        meta.paraphrases,
    )


def _lerobot(spec: DatasetSpec, path: Path) -> LeRobotIndex:
    info = json.loads(path.read_text(encoding="utf-8"))
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise ValueError(
            f"{path} has codebase_version {version!r}; readable are {', '.join(VERSIONS)}"
        )
    if info.get("fps", spec.rate_hz) != spec.rate_hz:
        raise ValueError(
            f"{path} was recorded at {info['fps']} Hz, but dataset row {spec.name!r} has rate_hz "
            f"{spec.rate_hz} ({spec.written_in})"
        )
    episodes = VERSIONS[version](spec, path, info)
    if not episodes:
        raise ValueError(f"{path} lists no episode")
    paraphrases = {text: tuple(found) for text, found in info.get("lang_aug_map", {}).items()}
    lists = sorted(f for f in path.parent.rglob("*") if f.suffix in (".json", ".jsonl", ".parquet"))
    return LeRobotIndex(tuple(episodes), tuple(lists), paraphrases)


def _version_2(spec: DatasetSpec, path: Path, info: Mapping[str, Any]) -> list[EpisodeFiles]:
    top = Path(info.get("root_path", path.parent.parent))
    lines = (path.parent / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        _own_files(
            spec,
            top,
            (info["data_path"], info.get("video_path") or ""),
            number=episode["episode_index"],
            chunk_size=info["chunks_size"],
            instruction=_first_task(episode["tasks"]),
        )
        for episode in map(json.loads, filter(str.strip, lines))
    ]


def _version_3(spec: DatasetSpec, path: Path, info: Mapping[str, Any]) -> list[EpisodeFiles]:
    top = path.parent.parent
    files = sorted((path.parent / "episodes").glob("*/*.parquet"))
    rows = [row for file in files for row in _episode_rows(file)]
    found = []
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        videos = {
            key: _shared_video(top, info["video_path"], key, row)
            for key in spec.views
            if row.get(f"videos/{key}/file_index") is not None
        }
        table = info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        found.append(
            EpisodeFiles(
                name=f"{top / table}#{row['episode_index']}",
                number=row["episode_index"],
                table=top / table,
                shared=True,
                videos=videos,
                instruction=_first_task(row["tasks"]),
            )
        )
    return found


def _shared_video(top: Path, template: str, key: str, row: Mapping[str, Any]) -> VideoPlace:
    path = template.format(
        video_key=key,
        chunk_index=row[f"videos/{key}/chunk_index"],
        file_index=row[f"videos/{key}/file_index"],
    )
    return VideoPlace(top / path, float(row[f"videos/{key}/from_timestamp"]))


def _episode_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a v3 episode table without its statistics."""
    names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
    return pq.read_table(file, columns=names).to_pylist()


def _agibot_episode(spec: DatasetSpec, meta: MetaFile, entry: Mapping[str, Any]) -> EpisodeFiles:
    actions = entry["action_config"]
    return _own_files(
        spec,
        meta.resolve(entry["top_path"]),
        (AGIBOT_DATA, AGIBOT_VIDEO),
        number=entry["episode_index"],
        chunk_size=AGIBOT_CHUNK_SIZE,
        instruction=_first_task(entry["tasks"]),
        span=(actions[0]["start_frame"], actions[-1]["end_frame"]) if actions else None,
    )


def _own_files(
    spec: DatasetSpec,
    top: Path,
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
    table = top / data_path.format(**place)
    videos = {
        key: VideoPlace(top / video_path.format(video_key=key, **place))
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
