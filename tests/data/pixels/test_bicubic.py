"""The compiled resize gives Pillow's bits, and stays away where it would not or would not pay."""

import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.images import load_image
from data.pixels import bicubic

SIDE = st.integers(1, 70)


def _pillow(pixels, side):
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _images(height, width):
    """Noise; black and white alone, where the filter overshoots on both sides; a gradient."""
    rng = np.random.default_rng(height * width)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    ramp = np.linspace(0, 255, height * width * 3).astype(np.uint8).reshape(height, width, 3)
    return noise, np.where(noise < 128, 0, 255).astype(np.uint8), ramp


@pytest.fixture
def ways(monkeypatch):
    """No size has come yet, and the third image of one is worth compiling for."""
    monkeypatch.setattr(bicubic, "WORTHWHILE", 3)
    monkeypatch.setattr(bicubic, "_ways", bicubic.Ways())


def _compiled():
    for thread in threading.enumerate():
        if thread.name == bicubic.THREAD:
            thread.join()


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (256, 256, 224),  # CALVIN, LIBERO
        (480, 640, 224),  # Bridge's cameras, ALOHA
        (180, 320, 224),  # DROID: one axis grows, the other shrinks
        (720, 1280, 224),
        (128, 128, 224),
        (300, 100, 224),  # upright: Pillow 13 filters the other axis first
        (224, 256, 224),  # one axis stays
        (256, 224, 224),
        (1, 1, 5),
        (97, 3, 1),
    ],
)
def test_sizes_of_cameras_give_the_bits_of_pillow(height, width, side):
    resize = bicubic.verified(height, width, side)
    assert resize is not None
    for pixels in _images(height, width):
        np.testing.assert_array_equal(resize(pixels), _pillow(pixels, side))


@given(SIDE, SIDE, SIDE)
@settings(max_examples=60, deadline=None)
def test_any_size_gives_the_bits_of_pillow(height, width, side):
    resize = bicubic.verified(height, width, side)
    assert resize is not None
    for pixels in _images(height, width):
        np.testing.assert_array_equal(resize(pixels), _pillow(pixels, side))


@pytest.mark.parametrize("order", ["rgb", "bgr_pixels"])
@pytest.mark.parametrize("turn", [0, 180])
def test_a_size_that_came_often_is_compiled_and_images_stay_the_same(ways, order, turn):
    pixels = _images(40, 30)[0]

    def loaded():
        return load_image(pixels, size=20, channel_order=order, turn=turn)

    plain, _, _ = loaded(), loaded(), loaded()
    assert bicubic.loops(40, 31, 20) is None  # another size has not come before
    _compiled()
    assert bicubic.loops(40, 30, 20) is not None
    np.testing.assert_array_equal(loaded(), plain)
    assert bicubic.loops(40, 31, 20) is None


def test_a_pillow_with_other_bits_keeps_the_work(ways, monkeypatch, caplog):
    monkeypatch.setattr(bicubic, "_by_pillow", lambda pixels, side: _pillow(pixels, side) ^ 1)
    for _ in range(3):
        assert bicubic.loops(40, 30, 20) is None
    _compiled()
    assert bicubic.loops(40, 30, 20) is None
    assert "40 x 30" in caplog.text


def test_without_numba_pillow_keeps_the_work(ways, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(bicubic, "_compiled", bicubic._compiled.__wrapped__)
    for _ in range(5):
        assert bicubic.loops(40, 30, 20) is None
        _compiled()


def test_sizes_that_come_once_are_forgotten(ways):
    for height in range(1, 2 * bicubic.KEPT_SIZES):
        assert bicubic.loops(height, 30, 20) is None
    assert len(bicubic._ways.seen) <= bicubic.KEPT_SIZES
