"""Frames to H.264, for a `<video>` element."""

from __future__ import annotations

import os
import tempfile
from typing import Sequence

import numpy as np
from numpy.typing import NDArray

from .pictures import needed


def encode_mp4(frames: NDArray[np.uint8], *, fps: int, scale: int = 2) -> bytes:
    """MP4 (H.264, 4:2:0) of uint8[f, H, W, 3] frames.

    Args:
        frames: RGB, at least one; H * scale and W * scale must be even.
        fps: frames in a second.
        scale: enlargement by whole pixels, as small frames blur when a browser enlarges them.
    """
    imageio_ffmpeg = needed("imageio_ffmpeg", "sim")

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; need uint8 [f, H, W, 3]")
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    if large.shape[1] % 2 or large.shape[2] % 2:
        raise ValueError(f"H.264 needs even sizes, got {large.shape[1]} x {large.shape[2]}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "film.mp4")
        height, width = large.shape[1:3]
        writer = imageio_ffmpeg.write_frames(
            path, (width, height), fps=fps, codec="libx264", quality=7, macro_block_size=2
        )
        writer.send(None)  # runs it up to where it takes frames
        for frame in large:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        with open(path, "rb") as file:
            return file.read()


def side_by_side(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Views uint8[h, w, 3] in a row, black below the shorter ones."""
    height = max(image.shape[0] for image in images)
    padded = [np.pad(i, ((0, height - i.shape[0]), (0, 0), (0, 0))) for i in images]
    return np.concatenate(padded, axis=1)
