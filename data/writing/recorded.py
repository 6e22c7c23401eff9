"""Episode files (.npz) of the recorder -> an RLDS dataset (tfds, TFRecord) with a manifest.

The files come from the recorder or from the conversion of LIBERO's demonstrations. Their dataset
keeps fields for which the standard trajectory has no place: task, initial state, seed, success and
commanded actions. Any other source is built by build.py.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.faults import needs
from data.readers.rlds import MANIFEST_NAME, SPLIT
from data.texts import plain_text
from data.writing.publish import (
    Written,
    circumstances,
    dataset_info,
    publish,
    read_json,
    read_manifest,
    write_json,
)
from data.writing.storage import Folder, in_bucket, remove, sha256_of

with needs("data"):
    import tensorflow_datasets as tfds

VERSION = "1.0.0"
MANIFEST_SCHEMA = 1
BEGUN = "inputs.json"  # beside a dataset in a bucket until it is complete: what it is made of
EPISODES_PER_SHARD = 100  # a shard is what the pipeline reads at once
SAME_IN_ALL = ("rate_hz", "image_size")
# name -> dtype and shape of one frame; "S" stands for the scalar image_size
FrameArrays = Mapping[str, tuple[type[np.generic], tuple["int | str", ...]]]
_POSES: FrameArrays = {
    "agentview": (np.uint8, ("S", "S", 3)),  # RGB, upright: turned by 180 degrees
    "wrist": (np.uint8, ("S", "S", 3)),  # RGB, as the simulator gives it
    "command_pose": (np.float32, (10,)),  # last command: xyz (m), contiguous 6-D, gripper -1 / +1
    "ee_pose": (np.float32, (9,)),  # measured at the controller: xyz (m), contiguous 6-D
    "action": (np.float32, (7,)),  # command: xyz (m), axis-angle (rad), gripper -1 open / +1 closed
}
_SIX_JOINTS: FrameArrays = {
    "front": (np.uint8, ("S", "S", 3)),  # RGB
    "wrist": (np.uint8, ("S", "S", 3)),  # RGB
    "state": (np.float32, (6,)),  # measured (rad)
    "action": (np.float32, (6,)),  # command (rad)
}


@dataclass(frozen=True)
class Form:
    """Content of the episode files of one dataset.

    Attributes:
        description: of the dataset.
        arrays: of each frame; "action" among them.
        grippers: array -> column that is -1 (open) or +1 (closed).
    """

    description: str
    arrays: FrameArrays
    grippers: Mapping[str, int]


_POSE_GRIPPERS = {"command_pose": 9, "action": 6}
# folder under the data folder -> form; each is the storage of a row in data/rows/
RECORDED: Mapping[str, Form] = {
    "libero_demos": Form(
        "Scripted LIBERO demonstrations under absolute end-effector control.",
        _POSES,
        _POSE_GRIPPERS,
    ),
    "libero": Form(
        "LIBERO's demonstrations, replayed under absolute end-effector control.",
        _POSES,
        _POSE_GRIPPERS,
    ),
    "so101_demos": Form(
        "Scripted demonstrations of an SO-101 arm, driven by its joints.", _SIX_JOINTS, {}
    ),
}
SCALARS: dict[str, type] = {
    "instruction": str,
    "task": str,
    "suite": str,
    "init_state": int,  # index of the official initial state, -1 if it is none of them
    "seed": int,
    "success": bool,
    "rate_hz": float,
    "image_size": int,
}


def write_dataset(
    inputs: Sequence[Path],
    root: Folder,
    *,
    name: str,
    licence: str,
    command: str,
    receipt: Mapping[str, Any],
    on_episode: Callable[[Path], None],
    on_copied: Callable[[int, int], None] = lambda _, __: None,
) -> Written:
    """Writes the successful episodes among `inputs` to <root>/<name>/1.0.0.

    Failed demonstrations are counted in the manifest and left out. A dataset that is already there
    and was made of the same files is kept. For a bucket the files are made on this machine's own
    disk and copied, the manifest last; a run that was stopped meanwhile begins again.

    Args:
        inputs: episode files, in the order to write.
        root: the data folder.
        name: a key of `RECORDED`.
        licence: terms of use, for the manifest.
        command: the command line that made it, for the manifest.
        receipt: how the episodes came about, for the manifest; plain JSON values.
        on_episode: called with each file once it is written or left out.
        on_copied: called with (files copied, files in all) after each that a bucket has got.

    Raises:
        ValueError: no licence, a bad episode file, files that do not belong together, no success
            among them, or another dataset in that place.
    """
    made_by = circumstances(licence, command)
    hashes = {path.name: sha256_of(path) for path in inputs}
    if len(hashes) != len(inputs):
        raise ValueError("two episode files have the same name")
    folder = root / name / VERSION
    begun = root / f".recorded-{name}"
    if _is_there(folder, begun, hashes):
        return Written(folder, _existing_manifest(folder, hashes), new=False)
    form = RECORDED[name]
    scalars = {path: read_scalars(path, form) for path in inputs}
    good = {path for path in inputs if scalars[path]["success"]}
    if not good:
        raise ValueError(f"no successful demonstration among {len(inputs)} episode files")
    with _unfinished(root, begun, hashes) as temporary:
        frames = _write_tfds(inputs, good, temporary, name, on_episode)
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "name": name,
            "version": VERSION,
            **_shared_values(scalars),
            **_counts([scalars[path] for path in inputs]),
            "frames": frames,
            **made_by,
            "receipt": dict(receipt),
            "inputs": hashes,
        }
        manifest = publish(temporary, folder, manifest, known={}, on_copied=on_copied)
    return Written(folder, manifest, new=True)


@contextlib.contextmanager
def _unfinished(root: Folder, begun: Folder, hashes: dict[str, str]) -> Iterator[Path]:
    """Yields a folder to write in, beside its place; for a bucket on this machine's own disk.

    What a dataset in a bucket is made of stands in `begun` until all went well.
    """
    if in_bucket(root):
        write_json(begun / BEGUN, {"inputs": hashes})
    else:
        root.mkdir(parents=True, exist_ok=True)
    beside = None if in_bucket(root) else root
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=beside))
    temporary.chmod(0o755)  # mkdtemp makes it for its owner alone
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # absent once it was renamed
    if in_bucket(root):
        remove(begun)


def _write_tfds(
    inputs: Sequence[Path],
    good: set[Path],
    folder: Path,
    name: str,
    on_episode: Callable[[Path], None],
) -> int:
    """Writes the good inputs to `folder`, in the order given; returns the number of frames."""
    form = RECORDED[name]
    info = dataset_info(
        name,
        VERSION,
        folder,
        form.description,
        _features(form.arrays, read_scalars(inputs[0], form)["image_size"]),
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=EPISODES_PER_SHARD)
    writer.initialize_splits([SPLIT])
    frames = 0
    for path in inputs:
        if path in good:
            episode = read_episode(path, form)
            frames += len(episode)
            writer.add_examples({SPLIT: [_example(episode)]})
        on_episode(path)
    writer.close_all()
    return frames


def _features(arrays: FrameArrays, image_size: int) -> tfds.features.FeaturesDict:
    image = tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="jpeg")
    observation = {
        name: image
        if dtype is np.uint8
        else tfds.features.Tensor(shape=(int(shape[0]),), dtype=np.float32)
        for name, (dtype, shape) in arrays.items()
    }
    action = observation.pop("action")
    steps = {
        "observation": observation,
        "action": action,
        "language_instruction": tfds.features.Text(),
        "is_first": np.bool_,
        "is_last": np.bool_,
        "is_terminal": np.bool_,
        "reward": np.float32,
        "discount": np.float32,
    }
    metadata = {
        "task": tfds.features.Text(),
        "init_state": np.int32,
        "seed": np.int64,
        "success": np.bool_,
    }
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(steps), "episode_metadata": metadata}
    )


def _example(episode: Episode) -> dict[str, Any]:
    """One RLDS episode; a success ends in a terminal step with reward 1 and discount 0."""
    last = len(episode) - 1
    observations = [name for name in episode.frames if name != "action"]
    steps = [
        {
            "observation": {name: episode.frames[name][i] for name in observations},
            "action": episode.frames["action"][i],
            "language_instruction": episode.scalars["instruction"],
            "is_first": i == 0,
            "is_last": i == last,
            "is_terminal": i == last,
            "reward": float(i == last),
            "discount": float(i != last),
        }
        for i in range(len(episode))
    ]
    metadata = {name: episode.scalars[name] for name in ("task", "init_state", "seed", "success")}
    return {"steps": steps, "episode_metadata": metadata}


def _shared_values(scalars: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Values that all episodes of a dataset have in common."""
    shared = {}
    for name in SAME_IN_ALL:
        values = {episode[name] for episode in scalars.values()}
        if len(values) != 1:
            raise ValueError(
                f"the episode files do not belong together: {name} is {sorted(values)}"
            )
        shared[name] = values.pop()
    return shared


def _counts(scalars: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Suites, tasks and number of the successful episodes, and how many were left out."""
    good = [episode for episode in scalars if episode["success"]]
    return {
        "suites": sorted({episode["suite"] for episode in good}),
        "tasks": sorted({episode["task"] for episode in good}),
        "episodes": len(good),
        "failures_left_out": len(scalars) - len(good),
    }


def _is_there(folder: Folder, begun: Folder, hashes: dict[str, str]) -> bool:
    """Returns True where a dataset is complete; a stopped run's files in a bucket are written over.

    Raises:
        ValueError: a folder of a bucket has files that no run on these inputs left.
    """
    if not folder.exists():
        return False
    if not in_bucket(folder) or (folder / MANIFEST_NAME).exists():
        return True
    if read_json(begun / BEGUN).get("inputs") != hashes:
        raise ValueError(
            f"{folder} has files and no manifest, and none of a run on these {len(hashes)} episode "
            "files that was stopped; remove it or choose another folder"
        )
    return False


def _existing_manifest(folder: Folder, hashes: dict[str, str]) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest.get("inputs") != hashes:
        raise ValueError(
            f"{folder} already holds another dataset: made of {len(manifest.get('inputs', {}))} "
            f"episode files, now {len(hashes)}; remove it or choose another folder"
        )
    return manifest


@dataclass(frozen=True)
class Episode:
    """One recorded episode; the arrays are empty when only the scalars were read."""

    path: Path
    scalars: Mapping[str, Any]
    frames: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.frames["action"])


def read_scalars(path: Path, form: Form) -> dict[str, Any]:
    """Reads the scalars of an episode file, as plain Python values; reads no image."""
    return dict(_read(path, form, frames=False).scalars)


def read_episode(path: Path, form: Form) -> Episode:
    """Reads and checks a complete episode.

    Raises:
        ValueError: a key is missing, or an array has the wrong type, shape, length or content.
    """
    episode = _read(path, form, frames=True)
    lengths = {name: len(array) for name, array in episode.frames.items()}
    if len(set(lengths.values())) != 1 or len(episode) == 0:
        raise ValueError(f"{path}: arrays of unequal or no length: {lengths}")
    for name, array in episode.frames.items():
        dtype, shape = form.arrays[name]
        sizes = tuple(episode.scalars["image_size"] if s == "S" else s for s in shape)
        if array.dtype != dtype or array.shape[1:] != sizes:
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}, must be {np.dtype(dtype)} "
                f"({len(array)}, {', '.join(map(str, sizes))})"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has a number that is not finite")
    for name, column in form.grippers.items():
        readings = episode.frames[name][:, column]
        if not np.isin(readings, (-1.0, 1.0)).all():
            raise ValueError(
                f"{path}: the gripper in {name}[:, {column}] must be -1 (open) or +1 (closed), "
                f"found {sorted(set(readings.tolist()))[:5]}"
            )
    return episode


def _read(path: Path, form: Form, *, frames: bool) -> Episode:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in (*SCALARS, *form.arrays) if name not in archive]
            if missing:
                raise ValueError(f"no {', '.join(missing)}; it has {', '.join(archive.files)}")
            scalars = {name: kind(archive[name].item()) for name, kind in SCALARS.items()}
            scalars["instruction"] = plain_text(archive["instruction"].item(), "instruction")
            if not scalars["instruction"]:
                raise ValueError("instruction is empty")
            arrays = {name: archive[name] for name in form.arrays} if frames else {}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no recorded episode: {error}") from error
    return Episode(path, scalars, arrays)
