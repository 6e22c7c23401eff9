"""Images of a request: arrays, lists, or the bytes of a JPEG or PNG file; always RGB in the end."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Final

import numpy as np
from PIL import Image

from xvla_jax.serving.refusal import bad_field

_FORMATS: Final = ("JPEG", "PNG")
_MODES: Final = ("RGB", "RGBA", "L", "P")
_ALLOWED: Final = "uint8[H, W, 3] RGB, or the bytes of a JPEG or PNG file as uint8[n]"


def picture(field: str, value: Any, *, most_pixels: int) -> np.ndarray:
    """An image as ``uint8[H, W, 3]`` RGB.

    Args:
        field: for messages.
        value: array, nested lists of 0 .. 255, or bytes of a file.
        most_pixels: of one image; of a file it is checked before the file is decoded.

    Raises:
        RequestError: anything else.
    """
    if isinstance(value, list):
        value = _from_lists(field, value)
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8) if value else np.zeros(0, np.uint8)
    if not isinstance(value, np.ndarray):
        raise bad_field(field, value, _ALLOWED)
    if value.dtype == np.uint8 and value.ndim == 1:
        return _decoded(field, value.tobytes(), most_pixels)
    found = f"{value.dtype}{list(value.shape)}"
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise bad_field(field, found, _ALLOWED)
    _check_size(field, value.shape[1], value.shape[0], most_pixels)
    return value


def _check_size(field: str, width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise bad_field(field, f"{width} x {height} pixels", f"at most {most_pixels} pixels")


def _from_lists(field: str, value: list[Any]) -> np.ndarray:
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise bad_field(field, "lists of unequal lengths", _ALLOWED) from error
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0 or array.max() > 255:
        raise bad_field(field, f"a list of {array.dtype}", "whole numbers 0 .. 255; " + _ALLOWED)
    return array.astype(np.uint8)


def _decoded(field: str, data: bytes, most_pixels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(field, *image.size, most_pixels)
            if image.mode not in _MODES:
                raise bad_field(field, f"mode {image.mode}", f"modes {', '.join(_MODES)}")
            return np.asarray(image.convert("RGB"))
    except (
        OSError,  # not a picture, or cut short
        EOFError,
        SyntaxError,  # what Pillow calls a broken PNG
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise bad_field(field, f"{len(data)} bytes: {error}"[:80], _ALLOWED) from error
