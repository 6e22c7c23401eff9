"""The end of writing a dataset: metadata, manifest, hashes, and one rename.

A dataset is made in a hidden folder on the disk of its place and renamed when complete; in a bucket
it is made in its place, and the manifest is written last. So a folder with a manifest is always
complete.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from data import untrusted
from data.faults import needs
from data.readers.rlds import MANIFEST_NAME
from data.writing.storage import Folder, in_bucket, sha256_of, write_text

with needs("data"):
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity


@dataclass(frozen=True)
class Written:
    """Folder and manifest of a dataset; `new` where this call made it."""

    folder: Folder
    manifest: dict[str, Any]
    new: bool


def circumstances(licence: str, command: str) -> dict[str, Any]:
    """Entries of a manifest for the terms of use, and for how and when it was made.

    Raises:
        ValueError: no licence.
    """
    if not licence.strip():
        raise ValueError("the licence is empty; say under what terms the data may be used")
    return {
        "licence": licence,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "tensorflow": tf.__version__,
            "tensorflow_datasets": tfds.__version__,
        },
    }


def dataset_info(
    name: str, version: str, folder: Folder, description: str, features: tfds.features.FeaturesDict
) -> tfds.core.DatasetInfo:
    """Metadata of a dataset whose files are in `folder`."""
    identity = DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=str(folder),
        module_name=__name__,
    )
    return tfds.core.DatasetInfo(builder=identity, description=description, features=features)


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Manifest of a dataset folder; empty where it has none."""
    return read_json(folder / MANIFEST_NAME)


def read_json(path: Folder) -> dict[str, Any]:
    """Content of a JSON file; empty where there is no file."""
    return untrusted.read_json(path) if path.exists() else {}


def publish(
    made: Folder,
    place: Folder,
    manifest: Mapping[str, Any],
    known: Mapping[str, str],
    on_copied: Callable[[int, int], None] = lambda _, __: None,
) -> dict[str, Any]:
    """Writes the manifest into the folder `made`, and renames the folder to `place`.

    From this machine into a bucket the files are copied, and the manifest is written last.

    Args:
        made: the complete files, in a folder on the same disk, or in `place` itself.
        place: where the dataset belongs; must not exist, unless it is `made` or in a bucket.
        manifest: its entries, without the hashes.
        known: SHA-256 of files, by name, that need not be read again.
        on_copied: called with (files copied, files in all) after each.

    Returns:
        The manifest as written, with the hashes under "files".
    """
    paths = sorted(path for path in made.iterdir() if path.name != MANIFEST_NAME)
    hashes = {path.name: known.get(path.name) or sha256_of(path) for path in paths}
    if in_bucket(place) and not in_bucket(made):
        for number, path in enumerate(paths, 1):
            epath.Path(path).copy(place / path.name, overwrite=True)
            on_copied(number, len(paths))
        made = place
    write_json(made / MANIFEST_NAME, {**manifest, "files": hashes})
    if made != place:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, place)
    return read_manifest(place)


def write_json(path: Folder, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, completely or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")
