"""X-VLA's `--train_metas_path`: one meta file, or a folder that is searched for them, as sources.

Weights are those of X-VLA's table, by `dataset_name`; LeRobot's info.json has weight 1, as there.
Each file trains a dataset of its own. Files that are no meta file are left out with a warning.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from data.places import Places
from data.readers.meta_files import STYLE_KEYS, check_meta, read_meta
from data.rows.mixtures import MIXTURES
from data.rows.table import table_row
from data.sources import open_reader
from data.stream.pipeline import Source

_log = logging.getLogger(__name__)

LEROBOT_KEY = "codebase_version"

# X-VLA's table of weights; what is not in it weighs 1
META_WEIGHTS: Mapping[str, float] = {
    **dict(MIXTURES["xvla_pretrain"]),
    "agiworld-on-site-pack": 0.8,
    "agiworld-on-site-pack-extra": 0.2,
    "agiworld-on-site-conveyor": 0.8,
    "agiworld-on-site-conveyor-extra": 0.2,
    "agiworld-on-site-microwave": 1.2,
    "agiworld-on-site-cloth": 1.2,
    "agiworld-on-site-cloth-2": 0.1,
}


def open_metas(
    path: epath.PathLike, *, data_root: epath.PathLike = "", outside_root: bool = False
) -> list[Source]:
    """Opened sources of every meta file at or below `path`.

    Args:
        path: a meta file, or a folder of them.
        data_root: below which the files that they name may lie, beside the folder of `path`.
        outside_root: they may lie anywhere.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two files of one name, an unknown dataset, or a file that is not JSON.
    """
    top = Path(path)
    files = sorted(top.rglob("*.json")) if top.is_dir() else [top]
    if not top.exists():
        raise FileNotFoundError(f"train_metas_path: {top} does not exist")
    places = Places.of(top, data_root, anywhere=outside_root)
    found: dict[str, tuple[Path, Source]] = {}
    for file in files:
        named = _open(file, places)
        if named is None:
            continue
        name, source = named
        if name in found:
            raise ValueError(
                f"{found[name][0]} and {file} are both of dataset {name!r}; give one of them "
                "another dataset_name"
            )
        found[name] = (file, source)
    if not found:
        raise FileNotFoundError(
            f"train_metas_path: {top} holds no meta file; one has the keys "
            f"{' and '.join(STYLE_KEYS)}, or is LeRobot's meta/info.json"
        )
    return [source for _, source in found.values()]


def _open(file: Path, places: Places) -> tuple[str, Source] | None:
    content = read_meta(file)
    if all(key in content for key in STYLE_KEYS):
        check_meta(content, file)
        name, root = content["dataset_name"], file
    elif LEROBOT_KEY in content:
        root = places.path(file.parent.parent, content.get("root_path") or "", file)
        name = str(root)
    else:
        _log.warning("%s is no meta file; it is left out", file)
        return None
    handler = content.get("robot_type") or content.get("dataset_name")
    try:
        row = table_row(handler)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    spec = dataclasses.replace(row, name=name)
    return name, Source(open_reader(spec, root, places), META_WEIGHTS.get(name, 1.0))
