"""Images: resized as a policy server does, encoded for it, and joined to films.

`resize_bicubic` equals Pillow's bicubic filter bit for bit, so an image that the client resizes is
the image that the server would make from the original.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.extras import needed

BICUBIC = 3  # Pillow's number of the filter, in a checkpoint's processor file
STRETCH = "stretch"  # name of a resize to a square, in a checkpoint's processor file
_BITS = 22  # Pillow's fixed point for 8-bit images
_SUPPORT = 2.0  # of the bicubic kernel, in pixels of the smaller image
_KERNEL_A = -0.5
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_RGB8 = bytes([8, 2, 0, 0, 0])  # bits, colour type, compression, filter, interlace
_PNG_SUB = 1  # filter: difference to the pixel at the left
_JPEG_QUALITY = 95


def check_image(image: Any) -> NDArray[np.uint8]:
    """Returns an image of door 2 as a contiguous array.

    Raises:
        ValueError: it is no uint8[H, W, 3].
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"an image is {array.dtype}{list(array.shape)}; uint8[H, W, 3] RGB")
    return np.ascontiguousarray(array)


def resize_bicubic(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8[H, W, 3] -> uint8[side, side, 3], bit for bit as Pillow does; stretches the ratio."""
    # Across first, then down, as Pillow does: each pass rounds to 8 bits.
    rows = _resize_columns(check_image(image), side)
    return _resize_columns(rows.swapaxes(0, 1), side).swapaxes(0, 1)


def _resize_columns(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if image.shape[1] == width:
        return image
    first, weights = _taps(image.shape[1], width)
    # Starts at one half in fixed point, so that the shift at the end rounds to nearest.
    total = np.full((image.shape[0], width, 3), 1 << (_BITS - 1), np.int32)
    last = image.shape[1] - 1
    for tap in range(weights.shape[1]):
        source = np.minimum(first + tap, last)  # beyond a kernel's end its weight is 0
        total += image[:, source].astype(np.int32) * weights[:, tap, None]
    return np.clip(total >> _BITS, 0, 255).astype(np.uint8)


def _taps(size: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """First source pixel [width] and fixed-point weights [width, taps] of each new pixel."""
    scale = size / width
    stretch = max(scale, 1.0)
    reach = _SUPPORT * stretch
    center = (np.arange(width) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((center + reach + 0.5).astype(np.int64), size)
    position = first[:, None] + np.arange(int((end - first).max()))
    weights = _kernel((position - center[:, None] + 0.5) / stretch)
    weights[position >= end[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights))
    return first, fixed.astype(np.int32)


def _kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = ((_KERNEL_A + 2) * x - (_KERNEL_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _KERNEL_A
    return np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0))


def png(image: NDArray[np.uint8]) -> bytes:
    """Encodes an image as PNG, without loss, with numpy and zlib alone."""
    height, width, _ = image.shape
    rows = image.copy()
    rows[:, 1:] -= image[:, :-1]  # uint8 wraps, as the filter is defined
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = _PNG_SUB
    lines[:, 1:] = rows.reshape(height, -1)
    head = struct.pack(">II", width, height) + _PNG_RGB8
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encodes an image as JPEG (quality 95), which changes pixels that the policy sees."""
    stream = io.BytesIO()
    needed("PIL.Image").fromarray(image).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()


def _file_of(encode: Callable[[NDArray[np.uint8]], bytes]) -> Callable[[Any], NDArray[np.uint8]]:
    return lambda image: np.frombuffer(encode(image), np.uint8)


# Forms of an image in a request: the array itself, or a file as uint8[n]; servers read all three.
ENCODINGS: Mapping[str, Callable[[Any], NDArray[np.uint8]]] = {
    "raw": lambda image: image,
    "png": _file_of(png),
    "jpeg": _file_of(jpeg),
}


def encode_mp4(frames: NDArray[np.uint8], *, fps: int, scale: int = 2) -> bytes:
    """Encodes uint8[f, H, W, 3] frames as MP4 (H.264, 4:2:0).

    Args:
        frames: RGB, at least one; H * scale and W * scale must be even.
        fps: frames in a second.
        scale: integer factor of enlargement, as browsers blur small frames.
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
        writer.send(None)  # a generator takes values after its first step
        for frame in large:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        with open(path, "rb") as file:
            return file.read()


def side_by_side(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Joins views uint8[h, w, 3] in a row, black below the shorter ones."""
    height = max(image.shape[0] for image in images)
    padded = [np.pad(i, ((0, height - i.shape[0]), (0, 0), (0, 0))) for i in images]
    return np.concatenate(padded, axis=1)
