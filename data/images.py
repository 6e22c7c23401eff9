"""Encoded pictures -> uint8 RGB at the model's size.

Pillow decodes JPEG with the accurate integer transform and resizes with its antialiased bicubic
filter, on which X-VLA's training and evaluation both rest. It lets go of Python's global lock while
it works, so threads scale.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]
Views = tuple[UInt8, ...]  # of one sample
FORMATS = ("JPEG", "PNG")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # with which files of FORMATS begin
LARGEST = 1 << 26  # pixels: 8192 x 8192
# what Pillow raises for damaged files, and files that claim to be huge
PICTURE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
# bytes of a camera buffer that was stored as it is -> its shape, RGB
RAW_PICTURES = {480 * 640 * 3: (480, 640, 3), 720 * 1280 * 3: (720, 1280, 3)}


Fit = Callable[[UInt8], UInt8]  # pixels [H, W, 3] RGB of any size -> those of the network


def load_picture(
    picture: bytes | UInt8, *, size: int | None, channel_order: str, fit: Fit | None = None
) -> UInt8:
    """An encoded picture, or pixels uint8[H, W, 3] RGB as they are -> uint8[size, size, 3] RGB.

    Without a size it stays as large as it is. With ``fit`` that does what else is resized by the
    bicubic filter, in place of it.

    Raises:
        ValueError: it is neither.
    """
    if fit is not None:
        return fit(load_picture(picture, size=None, channel_order=channel_order))
    if isinstance(picture, bytes):
        return decode_image(picture, size=size, channel_order=channel_order)
    return _pixels(_resized(Image.fromarray(check_pixels(picture)), size), "RGB")


def check_pixels(picture: Any) -> UInt8:
    """The picture when it is uint8[H, W, 3], else a ValueError."""
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"a picture is encoded bytes or uint8[H, W, 3], not {pixels.dtype}{list(pixels.shape)}"
        )
    return pixels


def decode_image(encoded: bytes, *, size: int | None, channel_order: str) -> UInt8:
    """One JPEG or PNG picture of any size -> uint8[size, size, 3] RGB.

    Grey, palette and 16-bit pictures become 8-bit RGB; an alpha channel is dropped.

    Args:
        encoded: the file's bytes.
        size: the side of the result, the aspect ratio is not kept; None: as large as it is.
        channel_order: "rgb", or "bgr_swapped" to exchange red and blue after decoding.

    Raises:
        ValueError: the bytes are no complete JPEG or PNG picture.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            check_pixel_count(picture)
            rgb = _eight_bit_rgb(picture)
    except PICTURE_ERRORS as error:
        head = encoded[:8].hex(" ")
        raise ValueError(
            f"{len(encoded)} bytes that start with {head or 'nothing'} are no complete picture "
            f"({' or '.join(FORMATS)}): {error}"
        ) from error
    return _pixels(_resized(rgb, size), "BGR" if channel_order == "bgr_swapped" else "RGB")


def check_pixel_count(picture: Image.Image) -> None:
    """A ValueError for a picture that claims more than `LARGEST` pixels; none is decoded."""
    if picture.width * picture.height > LARGEST:
        raise ValueError(f"it has {picture.width} x {picture.height} pixels, {LARGEST} are allowed")


def _resized(rgb: Image.Image, size: int | None) -> Image.Image:
    if size is None or rgb.size == (size, size):
        return rgb
    return rgb.resize((size, size), Image.Resampling.BICUBIC)


def _pixels(rgb: Image.Image, order: str) -> UInt8:
    """Pillow packs in either order at one price; numpy takes long to reverse an axis of three."""
    return np.frombuffer(rgb.tobytes("raw", order), np.uint8).reshape(rgb.height, rgb.width, 3)


def _eight_bit_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255; other decoders keep the high byte
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "RGB":
        picture.load()
        return picture  # not `convert`, which would copy it
    return picture.convert("RGB")


class ImageCache:
    """Decoded views of samples, kept until `limit_mb` is full. What does not fit is decoded again.

    Nothing is ever replaced: a training stream visits every sample equally often, so a fixed
    subset serves as well as a moving one and costs no bookkeeping.
    """

    def __init__(self, limit_mb: float) -> None:
        self._free_bytes = int(limit_mb * 2**20)
        self._entries: dict[Hashable, Views] = {}

    def get(self, key: Hashable, decode: Callable[[], Views]) -> Views:
        """The entry of `key`, made by `decode` where absent."""
        entry = self._entries.get(key)
        if entry is None:
            entry = decode()
            size = sum(view.nbytes for view in entry)
            if size <= self._free_bytes:
                # two threads may both get here: the limit is then passed by a few pictures
                self._free_bytes -= size
                self._entries[key] = entry
        return entry
