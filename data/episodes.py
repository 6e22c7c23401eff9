"""Recorded LIBERO episodes: the `.npz` files that the recorder leaves for the RLDS writer.

The recorder runs beside the simulator, where TensorFlow must not be imported; so the two exchange
plain numpy. One file is one episode of n frames; see `FRAME_ARRAYS` and `SCALARS` for the keys.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.texts import plain_text

# name -> dtype and shape of one frame; "S" stands for the scalar image_size
FRAME_ARRAYS: dict[str, tuple[type[np.generic], tuple[int | str, ...]]] = {
    "agentview": (np.uint8, ("S", "S", 3)),  # RGB, upright: turned by 180 degrees
    "wrist": (np.uint8, ("S", "S", 3)),  # RGB, as the simulator gives it
    "command_pose": (np.float32, (10,)),  # last command: xyz (m), contiguous 6-D, gripper -1 / +1
    "ee_pose": (np.float32, (9,)),  # measured at the controller: xyz (m), contiguous 6-D
    "action": (np.float32, (7,)),  # command: xyz (m), axis-angle (rad), gripper -1 open / +1 closed
}
GRIPPER_COLUMNS = {"command_pose": 9, "action": 6}
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


@dataclass(frozen=True)
class Episode:
    """One recorded episode; the arrays are empty when only the scalars were read."""

    path: Path
    scalars: Mapping[str, Any]
    frames: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.frames["action"])


def read_scalars(path: Path) -> dict[str, Any]:
    """The scalars of an episode file, as plain Python values; reads no picture."""
    return dict(_read(path, frames=False).scalars)


def read_episode(path: Path) -> Episode:
    """The whole episode, checked.

    Raises:
        ValueError: a key is missing, or an array has the wrong type, shape, length or content.
    """
    episode = _read(path, frames=True)
    lengths = {name: len(array) for name, array in episode.frames.items()}
    if len(set(lengths.values())) != 1 or len(episode) == 0:
        raise ValueError(f"{path}: arrays of unequal or no length: {lengths}")
    for name, array in episode.frames.items():
        dtype, shape = FRAME_ARRAYS[name]
        sizes = tuple(episode.scalars["image_size"] if s == "S" else s for s in shape)
        if array.dtype != dtype or array.shape[1:] != sizes:
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}, must be {np.dtype(dtype)} "
                f"({len(array)}, {', '.join(map(str, sizes))})"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has a number that is not finite")
    for name, column in GRIPPER_COLUMNS.items():
        readings = episode.frames[name][:, column]
        if not np.isin(readings, (-1.0, 1.0)).all():
            raise ValueError(
                f"{path}: the gripper in {name}[:, {column}] must be -1 (open) or +1 (closed), "
                f"found {sorted(set(readings.tolist()))[:5]}"
            )
    return episode


def _read(path: Path, *, frames: bool) -> Episode:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in (*SCALARS, *FRAME_ARRAYS) if name not in archive]
            if missing:
                raise ValueError(f"no {', '.join(missing)}; it has {', '.join(archive.files)}")
            scalars = {name: kind(archive[name].item()) for name, kind in SCALARS.items()}
            scalars["instruction"] = plain_text(archive["instruction"].item(), "instruction")
            if not scalars["instruction"]:
                raise ValueError("instruction is empty")
            arrays = {name: archive[name] for name in FRAME_ARRAYS} if frames else {}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no recorded episode: {error}") from error
    return Episode(path, scalars, arrays)
