"""Resizes camera images to squares, in one of the ways of ``RESIZING``.

Geometry and filter are those of training: another row gives other actions from the same weights.
`xvla_jax.processor.Processor` names the row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from PIL import Image

from xvla_jax.errors import InputError


def _stretch(image: np.ndarray, side: int, resample: int, _: np.ndarray) -> np.ndarray:
    resized = Image.fromarray(image).resize((side, side), Image.Resampling(resample))
    return np.asarray(resized)


def _linear(image: np.ndarray, side: int, _: int, __: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    pixels = np.einsum("xw,hwc->hxc", _triangles(width, side), image.astype(np.float32))
    pixels = np.tensordot(_triangles(height, side), pixels, 1)
    return np.clip(pixels, 0.0, 255.0)


def _pad(image: np.ndarray, side: int, _: int, fill: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    ratio = max(width / side, height / side)
    rows, columns = int(height / ratio), int(width / ratio)
    if not (rows and columns):
        raise InputError(f"is {height} x {width} px; within {side} x {side} nothing is left of it")
    above, below, share = _neighbours(height, rows)
    pixels = image.astype(np.float32)
    pixels = pixels[above] * (1 - share)[:, None, None] + pixels[below] * share[:, None, None]
    left, right, share = _neighbours(width, columns)
    pixels = pixels[:, left] * (1 - share)[:, None] + pixels[:, right] * share[:, None]
    out = np.empty((side, side, 3), np.float32)
    out[:] = fill  # above and to the left
    out[side - rows :, side - columns :] = pixels
    return out


def _none(image: np.ndarray, side: int, _: int, __: np.ndarray) -> np.ndarray:
    raise InputError(
        f"is {image.shape[0]} x {image.shape[1]} px; this checkpoint resizes none (its processor "
        f"says resize 'none') and takes {side} x {side} px alone"
    )


# Name -> an image of another size, side S, Pillow's filter, colour of margins -> [S, S, 3].
# stretch: to the square, by Pillow's filter, in uint8: the released X-VLA.
# pad:     the largest that fits, bilinear without antialiasing, in float; margins above and left
#          in the mean colour, which is 0 once normalised: LeRobot's resize_imgs_with_padding.
# linear:  to the square, bilinear with antialiasing, in float: LeRobot's image_crop_resize step.
# none:    refused; only S x S comes through: LeRobot without either.
RESIZING: Final[Mapping[str, Callable[[np.ndarray, int, int, np.ndarray], np.ndarray]]] = {
    "stretch": _stretch,
    "pad": _pad,
    "linear": _linear,
    "none": _none,
}
_IN_FLOAT: Final = ("pad", "linear")  # pixels between the levels of uint8


def pixel_dtype(mode: str) -> type[np.generic]:
    """Type of the pixels that a row returns."""
    return np.float32 if mode in _IN_FLOAT else np.uint8


def resize(
    image: np.ndarray, side: int, mode: str, *, resample: int, mean: Sequence[float], who: str
) -> np.ndarray:
    """Resizes an image ``uint8[H, W, 3]`` to ``[S, S, 3]`` of `pixel_dtype`, values 0 .. 255.

    An image of the right size is unchanged in all modes.

    Args:
        image: RGB.
        side: S.
        mode: key of ``RESIZING``.
        resample: Pillow's number of the filter of ``stretch``.
        mean: of the normalisation, 0 .. 1: the colour of margins.
        who: begins the message of an error.

    Raises:
        InputError: the image is not uint8 RGB, or the mode refuses its size.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(
            f"{who} is {image.dtype}{list(image.shape)}; uint8[H, W, 3] RGB is expected"
        )
    if image.shape[:2] != (side, side):
        fill = np.asarray(mean, np.float32) * 255
        try:
            image = RESIZING[mode](image, side, resample, fill)
        except InputError as error:
            raise InputError(f"{who} {error}") from error
    return image.astype(pixel_dtype(mode), copy=False)


@functools.lru_cache(maxsize=32)
def _neighbours(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns first and second source pixel of each target pixel, and the share of the second."""
    scale = np.float32(size) / np.float32(target)
    place = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - 0.5, 0)
    first = place.astype(np.int64)
    second = np.minimum(first + 1, size - 1)
    return first, second, (place - first).astype(np.float32)


@functools.lru_cache(maxsize=32)
def _triangles(size: int, target: int) -> np.ndarray:
    """Returns weights ``float32[target, size]`` of antialiased bilinear interpolation."""
    scale = size / target
    reach = max(scale, 1.0)
    weights = np.zeros((target, size), np.float32)
    for row, weight in enumerate(weights):
        centre = scale * (row + 0.5)
        first = max(int(centre - reach + 0.5), 0)
        places = np.arange(first, min(int(centre + reach + 0.5), size))
        values = np.maximum(1.0 - np.abs(places - centre + 0.5) / reach, 0.0)
        weight[places] = values / values.sum()
    return weights
