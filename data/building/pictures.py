"""What is stored of a picture.

All pictures of a dataset are in one channel order, named in its manifest. Where their size stays,
that is the order of the recording: encoded pictures are stored as they are, byte for byte, and what
is encoded here is put into that order first. Where they are resized, all are stored as true RGB.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data.images import FORMATS, PICTURE_ERRORS, UInt8, check_pixels, load_picture
from data.spec import DatasetSpec

PNG_LEVEL = 1  # a fifth of the time of Pillow's 6, for files larger by a sixth


@dataclass(frozen=True)
class PictureRule:
    """How pictures are stored.

    Attributes:
        image_size: side of the stored pictures; 0 leaves them as large as they are.
        quality: of JPEG without colour subsampling, 1 to 100; 0 takes PNG, which loses nothing.
    """

    image_size: int
    quality: int

    def __post_init__(self) -> None:
        if self.image_size < 0 or not 0 <= self.quality <= 100:
            raise ValueError(
                f"image_size is {self.image_size}, allowed is 0 or more; quality is "
                f"{self.quality}, allowed is 0 to 100"
            )

    def channel_order(self, spec: DatasetSpec) -> str:
        """The channel order of what is stored."""
        return "rgb" if self.image_size else spec.encoded_channel_order

    def stored(self, picture: Any, spec: DatasetSpec) -> bytes:
        """The bytes to store for a picture of a reader whose row is `spec`.

        Raises:
            ValueError: it is no picture; of one that is passed through, only the head is looked at.
        """
        order = self.channel_order(spec)
        if isinstance(picture, bytes) and order == spec.encoded_channel_order:
            sides = _encoded_size(picture)
            if not self.image_size or sides == (self.image_size, self.image_size):
                return picture
        if self.image_size:
            pixels = load_picture(
                picture, size=self.image_size, channel_order=spec.encoded_channel_order
            )
        else:
            pixels = check_pixels(picture)
        return self._encoded(pixels if order == "rgb" else pixels[..., ::-1])

    def _encoded(self, pixels: UInt8) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if self.quality:
            image.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        else:
            image.save(buffer, "PNG", compress_level=PNG_LEVEL)
        return buffer.getvalue()


def _encoded_size(encoded: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            return picture.size
    except PICTURE_ERRORS as error:
        raise ValueError(
            f"{len(encoded)} bytes are no picture ({' or '.join(FORMATS)}): {error}"
        ) from error
