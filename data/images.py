"""Images: the forms in which recordings store them, and the way to uint8 RGB at the model's size.

Pillow decodes JPEG with the accurate integer transform and resizes with its antialiased bicubic
filter, as X-VLA's training and evaluation do; sizes that come often are resized by compiled loops,
to the same bits (data/pixels/bicubic.py). Both release Python's global lock while they work, so
threads scale.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.faults import FaultError
from data.pixels import bicubic

UInt8 = NDArray[np.uint8]
Views = tuple[UInt8, ...]  # of one sample
FORMATS = ("JPEG", "PNG")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # with which files of FORMATS begin
LARGEST = 1 << 26  # pixels: 8192 x 8192
# exceptions of Pillow for damaged files, and files that claim to be huge
IMAGE_ERRORS = (
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
RAW_IMAGES = {480 * 640 * 3: (480, 640, 3), 720 * 1280 * 3: (720, 1280, 3)}


# forms of a stored image
ENCODED, PIXELS, CHANNELS_FIRST = "encoded", "pixels", "channels first"
READABLE = "encoded bytes, uint8[H, W, 3] or uint8[3, H, W]"
_MAYBE_CHANNELS = (1, 3, 4)

Fit = Callable[[UInt8], UInt8]  # pixels [H, W, 3] RGB of any size -> those of the network


def load_image(
    image: bytes | UInt8,
    *,
    size: int | None,
    channel_order: str,
    turn: int = 0,
    fit: Fit | None = None,
) -> UInt8:
    """An encoded image, or pixels uint8[H, W, 3] -> uint8[size, size, 3] RGB.

    Without a size it stays as large as it is. `fit` takes the place of the bicubic filter and of
    `size`. Pixels are RGB already, unless the order is "bgr_pixels". A turn of 180 (degrees) comes
    first.

    Raises:
        ValueError: it is neither.
    """
    if fit is not None:
        return fit(load_image(image, size=None, channel_order=channel_order, turn=turn))
    if isinstance(image, bytes):
        return decode_image(image, size=size, channel_order=channel_order, turn=turn)
    packed = "BGR" if channel_order == "bgr_pixels" else "RGB"
    return _sized(_turned(Image.fromarray(check_pixels(image)), turn), size, packed)


def check_pixels(image: Any) -> UInt8:
    """Returns pixels uint8[H, W, 3]; raises a ValueError for anything else."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"an image is encoded bytes or uint8[H, W, 3], not {pixels.dtype}{list(pixels.shape)}"
        )
    return pixels


def decode_image(encoded: bytes, *, size: int | None, channel_order: str, turn: int = 0) -> UInt8:
    """One JPEG or PNG image of any size -> uint8[size, size, 3] RGB.

    Grey, palette and 16-bit images become 8-bit RGB; an alpha channel is dropped.

    Args:
        encoded: the file's bytes.
        size: the side of the result, the aspect ratio is not kept; None: as large as it is.
        channel_order: "bgr_swapped" to exchange red and blue after decoding; else left as decoded.
        turn: degrees, 0 or 180.

    Raises:
        ValueError: the bytes are no complete JPEG or PNG image.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            check_pixel_count(image)
            rgb = _eight_bit_rgb(image)
    except IMAGE_ERRORS as error:
        head = encoded[:8].hex(" ")
        raise ValueError(
            f"{len(encoded)} bytes that start with {head or 'nothing'} are no complete image "
            f"({' or '.join(FORMATS)}): {error}"
        ) from error
    return _sized(_turned(rgb, turn), size, "BGR" if channel_order == "bgr_swapped" else "RGB")


def check_pixel_count(image: Image.Image) -> None:
    """Refuses an image that claims more than `LARGEST` pixels; none is decoded."""
    if image.width * image.height > LARGEST:
        raise ValueError(f"it has {image.width} x {image.height} pixels, {LARGEST} are allowed")


def _turned(rgb: Image.Image, turn: int) -> Image.Image:
    return rgb.transpose(Image.Transpose.ROTATE_180) if turn == 180 else rgb


def _sized(rgb: Image.Image, size: int | None, order: str) -> UInt8:
    """Pixels [size, size, 3] in RGB or BGR order; without a size as many as there are."""
    if size is None or rgb.size == (size, size):
        return _pixels(rgb, order)
    resize = bicubic.loops(rgb.height, rgb.width, size)
    if resize is None:
        return _pixels(rgb.resize((size, size), Image.Resampling.BICUBIC), order)
    return resize(_pixels(rgb, order))


def _pixels(rgb: Image.Image, order: str) -> UInt8:
    """Pixels in RGB or BGR order; Pillow swaps while it packs, numpy would take far longer."""
    return np.frombuffer(rgb.tobytes("raw", order), np.uint8).reshape(rgb.height, rgb.width, 3)


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255; other decoders keep the high byte
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "RGB":
        image.load()
        return image  # not `convert`, which would copy it
    return image.convert("RGB")


def image_form(dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> str:
    """Form of one image of this type and shape: ENCODED, PIXELS or CHANNELS_FIRST.

    Raises:
        FaultError: `malformed`, for anything else: grey, depth, alpha, floats, an unclear layout.
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
        value: bytes, or an array in one of the forms.
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
    return array if form == PIXELS else np.moveaxis(array, 0, -1)  # [3, H, W] -> [H, W, 3]


def stored_images(rows: Iterable[Any], name: str) -> NDArray[np.object_]:
    """The images of a view, one per row, as an object array; see `stored_image`."""
    stored = [stored_image(row, name) for row in rows]
    images = np.empty(len(stored), object)
    for place, image in enumerate(stored):  # numpy would turn equal shapes into more axes
        images[place] = image
    return images


class FileImages:
    """Images that are in files of their own, read when asked for; some may be in memory."""

    def __init__(self, folder: Path, places: NDArray[np.object_]) -> None:
        """Takes for each image its bytes, or its path: below `folder`, or absolute."""
        self._folder = folder
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        """Bytes of the file; a ValueError names a file that cannot be read."""
        place = self._places[index]
        try:
            return place if isinstance(place, bytes) else (self._folder / place).read_bytes()
        except OSError as error:
            raise ValueError(str(error)) from error

    def take(self, indices: NDArray[np.int64]) -> FileImages:
        """The images at `indices`, read when asked for."""
        return FileImages(self._folder, self._places[indices])


class ImageCache:
    """Decoded views of samples, kept until `limit_mb` is full. What does not fit is decoded again.

    Nothing is ever replaced: a training stream visits every sample equally often, so a fixed
    subset serves as well as a moving one and costs no bookkeeping.
    """

    def __init__(self, limit_mb: float) -> None:
        self._free_bytes = int(limit_mb * 2**20)
        self._entries: dict[Hashable, Views] = {}

    def get(self, key: Hashable, decode: Callable[[], Views]) -> Views:
        """Returns the entry of `key`, made by `decode` where it is absent."""
        entry = self._entries.get(key)
        if entry is None:
            entry = decode()
            size = sum(view.nbytes for view in entry)
            if size <= self._free_bytes:
                # two threads may both get here: the limit is then exceeded by a few images
                self._free_bytes -= size
                self._entries[key] = entry
        return entry
