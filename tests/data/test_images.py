import builtins
import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from data.images import ImageCache, decode_image, load_image
from tests.data.fakes import png


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def test_images_equal_the_original_reader(golden):
    z = golden("original_pictures.npz")
    images = [key.removesuffix("/encoded") for key in z.files if key.endswith("/encoded")]
    assert len(images) == 6
    complete = 0
    for key in images:
        pixels = decode_image(
            z[f"{key}/encoded"].tobytes(), size=224, channel_order="bgr_swapped"
        ).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels[:, 100:112, 100:112], z[f"{key}/patch"])
        np.testing.assert_array_equal(pixels.astype(np.int64).sum((1, 2)), z[f"{key}/sum"])
        if f"{key}/full" in z.files:
            complete += 1
            np.testing.assert_array_equal(pixels, z[f"{key}/full"])
    assert complete == 2


def test_red_stays_red_unless_the_row_says_that_it_was_swapped():
    red = png((255, 0, 0), size=4)
    assert decode_image(red, size=4, channel_order="rgb")[0, 0].tolist() == [255, 0, 0]
    assert decode_image(red, size=4, channel_order="bgr_swapped")[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        (np.uint8(200), [200, 200, 200]),
        (np.array([10, 20, 30, 0], np.uint8), [10, 20, 30]),  # transparent
        (np.uint16(0xC812), [0xC8, 0xC8, 0xC8]),
    ],
    ids=["grey", "rgba", "16-bit"],
)
def test_other_pixels_become_8_bit_rgb(pixel, expected):
    image = np.broadcast_to(pixel, (4, 4, *np.shape(pixel))).copy()
    decoded = decode_image(encoded(image), size=4, channel_order="rgb")
    assert decoded.dtype == np.uint8
    assert decoded.shape == (4, 4, 3)
    assert decoded[2, 2].tolist() == expected


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "gif"])
def test_bytes_that_are_no_complete_image_are_an_error(damage):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = {
        "empty": b"",
        "text": b"not an image",
        "cut": encoded(noise, "JPEG")[:-200],
        "gif": encoded(noise[..., 0], "GIF"),
    }[damage]
    with pytest.raises(ValueError, match=rf"^{len(data)} bytes .*no complete image"):
        decode_image(data, size=8, channel_order="rgb")


def test_the_cache_decodes_once_until_it_is_full():
    cache = ImageCache(limit_mb=1.5)
    calls = []

    def entry(key):
        def decode():
            calls.append(key)
            return (np.full(2**20, key, np.uint8),)

        return cache.get(key, decode)[0][0]

    assert [entry(key) for key in (1, 2, 1, 2, 1)] == [1, 2, 1, 2, 1]
    assert calls == [1, 2, 2], "entry 2 did not fit"


def test_pixels_are_resized_as_an_encoded_image_is():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    pixels_read = load_image(pixels, size=16, channel_order="bgr_swapped")
    np.testing.assert_array_equal(
        pixels_read, decode_image(encoded(pixels), size=16, channel_order="rgb")
    )


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), "a"]
)
def test_what_is_neither_bytes_nor_pixels_is_an_error(image):
    with pytest.raises(ValueError, match="encoded bytes or uint8"):
        load_image(image, size=4, channel_order="rgb")


def test_another_way_of_resizing_takes_the_place_of_the_filter():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)

    def fit(image):
        return image[:4, :4]

    for image in (pixels, encoded(pixels)):
        fitted = load_image(image, size=4, channel_order="rgb", fit=fit)
        np.testing.assert_array_equal(fitted, pixels[:4, :4])


class OddError(RuntimeError):
    """Stands for what a plugin of Pillow may raise of its own."""


LEFT_OUT = Warning | UnicodeError | ImportError | ReferenceError | NameError
PILLOW_RAISES = {
    *(
        error
        for name, error in vars(builtins).items()
        if isinstance(error, type)
        and issubclass(error, Exception)
        and name not in ("Exception", "ExceptionGroup", "StopIteration", "StopAsyncIteration")
        and not issubclass(error, LEFT_OUT)
    ),
    *(
        error
        for module in (Image, ImageFile, JpegImagePlugin, PngImagePlugin, PIL)
        for error in vars(module).values()
        if isinstance(error, type) and issubclass(error, Exception)
    ),
    struct.error,
    zlib.error,
    OddError,
}


def _place(error: type[Exception]) -> tuple[str, str]:
    """Orders classes of exceptions: every worker has to see the tests in the same order."""
    return error.__module__, error.__qualname__


@pytest.mark.parametrize(
    "raised", sorted(PILLOW_RAISES, key=_place), ids=lambda error: error.__name__
)
def test_whatever_pillow_raises_is_a_bad_image(monkeypatch, raised):
    def fail(*_, **__):
        raise raised("odd")

    data = encoded(np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ValueError, match="no complete image"):
        decode_image(data, size=None, channel_order="rgb")


def test_an_image_is_measured_before_it_is_decoded(monkeypatch):
    data = encoded(np.zeros((10, 11, 3), np.uint8))
    monkeypatch.setattr("data.images.LARGEST", 100)
    with pytest.raises(ValueError, match=r"it has 11 x 10 pixels, 100 are allowed"):
        decode_image(data, size=4, channel_order="rgb")
