"""Colour jitter against torchvision's formulas, written out with numpy."""

import numpy as np
import pytest

from data.jitter import Jitter, draw_jitter, jittered

ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def grey(pixels):
    """ITU-R 601 luma in the fixed-point arithmetic of Pillow's conversion to "L"."""
    r, g, b = np.moveaxis(pixels.astype(np.int64), -1, 0)
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


def blend(degenerate, pixels, factor):
    """factor * pixels + (1 - factor) * degenerate in float32, cut off to 0..255 whole numbers."""
    first = degenerate.astype(np.float32)
    mixed = first + np.float32(factor) * (pixels.astype(np.float32) - first)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def by_hand(pixels, jitter):
    for which in jitter.order:
        luma = grey(pixels)
        degenerate = (
            np.zeros_like(pixels),
            np.full_like(pixels, int(luma.mean() + 0.5)),
            np.repeat(luma[..., None], 3, axis=-1).astype(np.uint8),
        )[which]
        pixels = blend(degenerate, pixels, jitter.factors[which])
    return pixels


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("factors", [(0.8, 1.2, 0.9), (1.2, 0.8, 1.2), (1.0, 1.0, 1.0)])
def test_the_formulas(order, factors):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 31, 3), np.uint8)
    jitter = Jitter(factors, order)
    np.testing.assert_array_equal(jittered(pixels, jitter), by_hand(pixels, jitter))


def test_one_pixel_by_eye():
    pixels = np.array([[[200, 100, 0]]], np.uint8)
    # grey is 0.299 * 200 + 0.587 * 100 = 118.5, rounded to 119; this picture's mean is the same
    alone = {0: [160, 80, 0], 1: [183, 103, 23], 2: [183, 103, 23]}
    for which, expected in alone.items():
        factors = [1.0, 1.0, 1.0]
        factors[which] = 0.8
        found = jittered(pixels, Jitter(tuple(factors), (0, 1, 2)))
        assert found[0, 0].tolist() == expected


def test_draws_are_spread_over_range_and_orders():
    found = [draw_jitter(0, "dataset", number, 0) for number in range(3000)]
    factors = np.array([jitter.factors for jitter in found])
    assert 0.8 <= factors.min() < 0.801
    assert 1.199 < factors.max() < 1.2
    np.testing.assert_allclose(factors.mean(axis=0), 1.0, atol=0.01)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.07
    counts = [sum(jitter.order == order for jitter in found) for order in ORDERS]
    assert min(counts) > 400
    assert sum(counts) == 3000


def test_draws_depend_on_seed_sample_and_view_alone():
    first = draw_jitter(0, "dataset", 7, 0)
    assert draw_jitter(0, "dataset", 7, 0) == first
    others = {draw_jitter(1, "dataset", 7, 0), draw_jitter(0, "dataset", 8, 0)}
    assert first not in others | {draw_jitter(0, "dataset", 7, 1), draw_jitter(0, "other", 7, 0)}
