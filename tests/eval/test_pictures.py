"""The client resizes images exactly as the server does, bit for bit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from eval.extras import needed
from eval.pictures import BICUBIC, ENCODINGS, check_image, png, resize_bicubic


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(480, 640, 224), (256, 256, 224), (128, 128, 64), (100, 37, 224), (224, 300, 224), (5, 7, 3)],
)
def test_the_resize_is_pillows(height: int, width: int, side: int) -> None:
    image = _noise(height, width)
    by_pillow = Image.fromarray(image).resize((side, side), Image.Resampling(BICUBIC))
    np.testing.assert_array_equal(resize_bicubic(image, side), np.asarray(by_pillow))


def test_edges_overshoot_and_are_clipped() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 255
    by_pillow = Image.fromarray(image).resize((50, 50), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_bicubic(image, 50), np.asarray(by_pillow))


def test_png_keeps_every_bit_and_jpeg_nearly() -> None:
    image = _noise(17, 9)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), image)
    smooth = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (1, 64, 3))
    data = ENCODINGS["jpeg"](smooth)
    assert (data.dtype, data.ndim) == (np.uint8, 1)
    decoded = np.asarray(Image.open(io.BytesIO(data.tobytes())), np.int32)
    assert np.abs(decoded - smooth).max() <= 3
    assert ENCODINGS["raw"](image) is image


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float64\[4, 4, 3\]; uint8\[H, W, 3\]"):
        check_image(np.zeros((4, 4, 3)))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"no_such_thing is not installed.*pip install"):
        needed("no_such_thing.part")
