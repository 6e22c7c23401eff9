"""Images as recordings keep them -> images, or a fault that names what is there instead.

Every reader comes through here, so that no array is trained on whose layout is not known. One
image is

    bytes, uint8[n]    an encoded file, which may be filled up with zeros
    uint8[H, W, 3]     RGB pixels
    uint8[3, H, W]     the same, channels first; they become uint8[H, W, 3]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.faults import FaultError
from data.images import UInt8

ENCODED, PIXELS, CHANNELS_FIRST = "encoded", "pixels", "channels first"
READABLE = "encoded bytes, uint8[H, W, 3] or uint8[3, H, W]"
_MAYBE_CHANNELS = (1, 3, 4)


def image_form(dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> str:
    """ENCODED, PIXELS or CHANNELS_FIRST: how one image of this type and shape is read.

    Raises:
        FaultError: `malformed`, in any other case: grey, depth, alpha, floats, an unclear layout.
    """
    if (dtype.kind in "SV" and shape == ()) or (dtype in (np.uint8, np.int8) and len(shape) == 1):
        return ENCODED
    if dtype == np.uint8 and len(shape) == 3 and min(shape) > 0:
        first, _, last = shape
        if last == 3 and first != 3:
            return PIXELS
        if first == 3 and last not in _MAYBE_CHANNELS:
            return CHANNELS_FIRST
    raise FaultError(
        "malformed", f"an image of {name} is {dtype}{list(shape)}; it must be {READABLE}"
    )


def stored_image(value: Any, name: str) -> bytes | UInt8:
    """One recorded image -> the bytes of its file, or uint8[H, W, 3] RGB.

    Args:
        value: bytes, or an array of one of the forms above.
        name: of the view, for messages.

    Raises:
        FaultError: `malformed`, it is neither.
    """
    if isinstance(value, bytes):
        return value
    array = np.asarray(value)
    form = image_form(array.dtype, array.shape, name)
    if form == ENCODED:
        return array.tobytes()
    return array if form == PIXELS else np.moveaxis(array, 0, -1)


def stored_images(rows: Iterable[Any], name: str) -> NDArray[np.object_]:
    """The images of a view, one per row, as an object array; see `stored_image`."""
    found = [stored_image(row, name) for row in rows]
    images = np.empty(len(found), object)
    for place, image in enumerate(found):  # numpy would take equal shapes for more axes
        images[place] = image
    return images


class FilePictures:
    """Images that are in files of their own, read when asked for; some may be in memory."""

    def __init__(self, folder: Path, places: NDArray[np.object_]) -> None:
        """`places` has the bytes of an image, or its path: below `folder`, or absolute."""
        self._folder = folder
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        """The file's bytes; a ValueError names the file."""
        place = self._places[index]
        try:
            return place if isinstance(place, bytes) else (self._folder / place).read_bytes()
        except OSError as error:
            raise ValueError(str(error)) from error

    def take(self, indices: NDArray[np.int64]) -> FilePictures:
        """The images at `indices`, read when asked for."""
        return FilePictures(self._folder, self._places[indices])
