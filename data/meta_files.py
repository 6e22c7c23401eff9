"""X-VLA's meta files: one JSON per dataset that lists its episodes and says where things are.

They are read as they are. Two things are ours: a path may be relative to the folder of the file,
and a key `encoded_channel_order` replaces that of the dataset row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from data.texts import read_paraphrases

STYLE_KEYS = ("dataset_name", "datalist")
SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class MetaFile:
    """A meta file in X-VLA's general style."""

    path: Path
    content: Mapping[str, Any]

    @property
    def entries(self) -> list[Any]:
        """One entry per episode; what it is depends on the storage."""
        return self.content["datalist"]

    @property
    def paths(self) -> list[Path]:
        """The file of each episode: an entry is a path, a list that begins with one, or has `path`.

        Raises:
            ValueError: an entry is none of these, or no path of this machine.
        """
        return [self.resolve(self._path_of(entry)) for entry in self.entries]

    @property
    def paraphrases(self) -> dict[str, tuple[str, ...]]:
        """Instruction -> what may stand in its place."""
        return read_paraphrases(self.content.get("lang_aug_map", {}), str(self.path))

    def field(self, key: str) -> Any:
        """The value of `key`; a ValueError says what the file has instead."""
        if key not in self.content:
            raise ValueError(f"{self.path} has no {key!r}; it has {', '.join(self.content)}")
        return self.content[key]

    def resolve(self, path: str) -> Path:
        """`path` as it is where absolute, else below the folder of the file."""
        if "://" in path:
            raise ValueError(
                f"{self.path}: {path} is no path of this machine; copy the episodes, and list "
                f"them by paths that are absolute or below {self.path.parent}"
            )
        return self.path.parent / path

    def values(self, entry: Any, *keys: str) -> list[Any]:
        """The values of an entry that is a dictionary; a ValueError names those that it lacks."""
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(
                f"{self.path}: an entry of datalist is {_short(entry)}; it must be a dictionary "
                f"with {', '.join(keys)}"
            )
        return [entry[key] for key in keys]

    def _path_of(self, entry: Any) -> str:
        listed = entry[0] if isinstance(entry, list) and entry else entry
        path = listed.get("path") if isinstance(listed, dict) else listed
        if not isinstance(path, str):
            raise ValueError(
                f"{self.path}: an entry of datalist is {_short(entry)}; it must be the path of an "
                "episode, a list that begins with it, or a dictionary with it as 'path'"
            )
        return path


def find_meta_file(root: epath.PathLike, name: str) -> MetaFile:
    """The meta file of dataset `name`: `root` itself, or a JSON in <root>/ or <root>/<name>/.

    It is the one whose `robot_type`, or in its absence `dataset_name`, is `name`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, or a JSON file cannot be read.
    """
    top = Path(root)
    folders = (top, top / name)
    paths = [top] if top.is_file() else [p for f in folders for p in sorted(f.glob("*.json"))]
    found = {path: _read(path) for path in paths}
    styled = {p: c for p, c in found.items() if all(key in c for key in STYLE_KEYS)}
    names = {path: c.get("robot_type") or c["dataset_name"] for path, c in styled.items()}
    matching = [path for path, found_name in names.items() if found_name == name]
    if not matching:
        there = ", ".join(f"{path} ({names[path]})" for path in styled) or "no meta file"
        raise FileNotFoundError(
            f"no meta file of dataset {name!r} in {top} or {top / name}; there is {there}"
        )
    if len(matching) > 1:
        raise ValueError(
            f"dataset {name!r} has several meta files: {', '.join(map(str, matching))}; give one "
            "of them another dataset_name, and a row of that storage_name"
        )
    meta = MetaFile(matching[0], styled[matching[0]])
    if not isinstance(meta.entries, list) or not meta.entries:
        raise ValueError(
            f"{meta.path} lists no episode in 'datalist': it is {_short(meta.entries)}, and must "
            "be a list with an entry per episode"
        )
    return meta


def _short(value: Any) -> str:
    """JSON of a value, cut to a line."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    return content if isinstance(content, dict) else {}
