"""Writes an episode, as training reads it, to a file for the Rerun viewer: rerun FILE.rrd."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.faults import needs
from data.images import load_image
from data.poses.rotations import ARM_WIDTH
from data.spec import DatasetSpec
from data.trajectory import Trajectory
from scripts.inspection.samples import channel_names, first_episode

JPEG_QUALITY = 85
# the timelines of LeRobot's own lerobot-dataset-viz
FRAME, TIME = "frame_index", "timestamp"


def write_episode(row: str, root: Path, out: Path) -> int:
    """Writes the first episode that gives a sample; returns its number of frames.

    Images stand under their keys, in the colours in which the model sees them, numbers under
    ``state/NAME`` and, where the row has actions, ``target/NAME``; positions of hands also as a way
    in space.

    Raises:
        MissingExtraError: rerun-sdk is not installed.
        ValueError, OSError: the row cannot be read, or no episode has a sample.
    """
    rr = viewer()
    spec, trajectory, _ = first_episode(row, root)
    frames = len(trajectory.poses)
    times = [
        rr.TimeColumn(FRAME, sequence=np.arange(frames)),
        rr.TimeColumn(TIME, duration=np.arange(frames) / spec.rate_hz),
    ]
    recording = rr.RecordingStream("xvla_jax")
    recording.save(str(out))
    recording.log("instruction", rr.TextDocument(trajectory.instruction), static=True)
    groups = {"state": trajectory.poses, "target": trajectory.targets}
    for group, rows in groups.items():
        for name, values in zip(channel_names(spec), () if rows is None else rows.T, strict=False):
            scalars = rr.Scalars.columns(scalars=values)
            recording.send_columns(f"{group}/{name}", indexes=times, columns=scalars)
    for side, way in _ways(spec, trajectory):
        recording.log(f"hand/{side}/way", rr.LineStrips3D([way]), static=True)
        columns = rr.Points3D.columns(positions=way)
        recording.send_columns(f"hand/{side}", indexes=times, columns=columns)
    for frame in range(frames):
        recording.set_time(FRAME, sequence=frame)
        recording.set_time(TIME, duration=frame / spec.rate_hz)
        for number, view in zip(trajectory.view_numbers, trajectory.images, strict=True):
            pixels = load_image(
                view[frame + spec.picture_offset],
                size=None,
                channel_order=spec.channel_order_of(number),
                turn=spec.views[number].turn,
            )
            image = rr.Image(pixels).compress(jpeg_quality=JPEG_QUALITY)
            recording.log(f"images/{spec.views[number].key}", image)
    recording.flush()
    recording.disconnect()
    return frames


def viewer() -> Any:
    """The package of the Rerun viewer.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs("rerun"):
        return importlib.import_module("rerun")


def _ways(spec: DatasetSpec, trajectory: Trajectory) -> list[tuple[str, NDArray[np.float64]]]:
    """Positions [T, 3] of each hand of a row of poses."""
    if spec.joints:
        return []
    sides = ("hand",) if len(spec.arms) == 1 else ("left", "right")
    return [(s, trajectory.poses[:, n * ARM_WIDTH :][:, :3]) for n, s in enumerate(sides)]
