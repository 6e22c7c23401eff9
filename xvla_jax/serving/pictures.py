"""Images of a request: arrays, lists, or a JPEG or PNG file as bytes or base64; always RGB."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any, Final

import numpy as np
from PIL import Image

from xvla_jax.extras import needs
from xvla_jax.serving.codecs import array_from_list
from xvla_jax.serving.refusal import bad_field

with needs("serve"):
    import pybase64

_FORMATS: Final = ("JPEG", "PNG")
_MODES: Final = ("RGB", "RGBA", "L", "P")
# How base64 of a file begins: with its kind's first bytes, or as the address that holds it.
_FILE_TEXT: Final = re.compile(r"(?:data:image/(?:png|jpeg|jpg);base64,|(?=iVBORw0KGgo|/9j/))")
_ALLOWED: Final = (
    "uint8[H, W, 3] RGB, or a JPEG or PNG file: its bytes as uint8[n], base64, or a data: address"
)


def file_of_text(field: str, text: str) -> bytes | None:
    """The JPEG or PNG file that a text holds as base64; None for a text that holds JSON.

    Raises:
        RequestError: neither; nothing that a text names is ever opened.
    """
    found = _FILE_TEXT.match(text)
    if found is None:
        if text.lstrip()[:1] in ("{", "["):
            return None
        raise bad_field(field, text, _ALLOWED)
    try:
        return pybase64.b64decode("".join(text[found.end() :].split()), validate=True)
    except ValueError as error:
        raise bad_field(field, f"base64: {error}", _ALLOWED) from error


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
        value = _from_lists(field, value, most_pixels)
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


def _from_lists(field: str, value: list[Any], most_pixels: int) -> np.ndarray:
    array = array_from_list(field, value, _ALLOWED, axes=3, most=3 * most_pixels)
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0 or array.max() > 255:
        raise bad_field(field, f"a list of {array.dtype}", "whole numbers 0 .. 255; " + _ALLOWED)
    return array.astype(np.uint8)


def _decoded(field: str, data: bytes, most_pixels: int) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(field, *image.size, most_pixels)
        if image.mode not in _MODES:
            raise bad_field(field, f"mode {image.mode}", f"modes {', '.join(_MODES)}")
        if image.mode != "RGB":
            image = image.convert("RGB")  # the other pixels are freed before the array is made
        return np.asarray(image)
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
