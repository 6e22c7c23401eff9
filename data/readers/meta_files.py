"""X-VLA's meta files: one JSON per dataset, which lists its episodes and names their arrays.

They are read as published, with two extensions: a path may be relative to the folder of the file,
and a key `encoded_channel_order` replaces that of the dataset row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from etils import epath
from typing_extensions import TypedDict

from data.texts import read_paraphrases
from data.untrusted import STRICT, Places, read_json, shown, typed

STYLE_KEYS = ("dataset_name", "datalist")


@pydantic.with_config(STRICT)
class _Required(TypedDict):
    dataset_name: str
    datalist: list[Any]


@pydantic.with_config(STRICT)
class _Content(_Required, total=False):
    """Fields that are read here.

    Entries, keys of arrays (data/readers/hdf5.py) and texts (data/texts.py) are checked where used.
    """

    robot_type: str | None
    encoded_channel_order: str
    top_path: str


_CONTENT = pydantic.TypeAdapter(_Content)


@dataclass(frozen=True)
class MetaFile:
    """A meta file in X-VLA's general style."""

    path: Path
    content: Mapping[str, Any]
    places: Places

    @property
    def entries(self) -> list[Any]:
        """One entry per episode, in the form of the storage."""
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
        """Paraphrases by instruction."""
        return read_paraphrases(self.content.get("lang_aug_map", {}), str(self.path))

    def field(self, key: str) -> Any:
        """Value of `key`; a ValueError lists the keys that the file has."""
        if key not in self.content:
            raise ValueError(f"{self.path} has no {key!r}; it has {', '.join(self.content)}")
        return self.content[key]

    def resolve(self, path: Any, below: Path | None = None) -> Path:
        """Returns `path`, which if relative lies below the folder of the file or a given one.

        Raises:
            ValueError: it is no path of this machine, or leads out of the data folder
                (data/untrusted.py).
        """
        if isinstance(path, str) and "://" in path:
            raise ValueError(
                f"{self.path}: {path} is no path of this machine; copy the episodes, and list "
                f"them by paths that are absolute or below {self.path.parent}"
            )
        return self.places.path(below or self.path.parent, path, self.path)

    def values(self, entry: Any, *keys: str) -> list[Any]:
        """Values of an entry that is a dictionary; a ValueError names the keys it must have."""
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(
                f"{self.path}: an entry of datalist is {shown(entry)}; it must be a dictionary "
                f"with {', '.join(keys)}"
            )
        return [entry[key] for key in keys]

    def _path_of(self, entry: Any) -> str:
        listed = entry[0] if isinstance(entry, list) and entry else entry
        path = listed.get("path") if isinstance(listed, dict) else listed
        if not isinstance(path, str):
            raise ValueError(
                f"{self.path}: an entry of datalist is {shown(entry)}; it must be the path of an "
                "episode, a list that begins with it, or a dictionary with it as 'path'"
            )
        return path


def find_meta_file(root: epath.PathLike, name: str, places: Places | None = None) -> MetaFile:
    """Finds the meta file of dataset `name`: `root` itself, or a JSON in <root>/ or <root>/<name>/.

    It is the one whose `robot_type`, or in its absence `dataset_name`, is `name`. The files that it
    names lie in `places`; by default below `root`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, or a JSON file cannot be read.
    """
    top = Path(root)
    styled = styled_files(top, name)
    names = {path: c.get("robot_type") or c["dataset_name"] for path, c in styled.items()}
    matching = [path for path, stated in names.items() if stated == name]
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
    content = styled[matching[0]]
    check_meta(content, matching[0])
    return MetaFile(matching[0], content, places or Places.of(root))


def styled_files(top: Path, name: str) -> dict[Path, Mapping[str, Any]]:
    """Content of the meta files at `top`: itself, or the JSON files in <top>/ and <top>/<name>/."""
    folders = (top, top / name)
    paths = [top] if top.is_file() else [p for f in folders for p in sorted(f.glob("*.json"))]
    contents = {path: read_meta(path) for path in paths}
    return {p: c for p, c in contents.items() if all(key in c for key in STYLE_KEYS)}


def read_meta(path: Path) -> Mapping[str, Any]:
    """Content of a JSON file; empty where that is no object."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def check_meta(content: Mapping[str, Any], path: Path) -> None:
    """Refuses a meta file with a field of another type; the ValueError names the first."""
    entries = content["datalist"]
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path} lists no episode in 'datalist': it is {shown(entries)}, and must be a list "
            "with an entry per episode"
        )
    typed(_CONTENT, dict(content), path)
