"""The contact sheet shows the images, and the path of a hand where a camera says so."""

import io

import numpy as np
import pytest
from PIL import Image

from data.inspection.reports import Camera, Sheet
from scripts.inspection.source import GAP, contact_sheet, usable

SIZE = 96
# across is y, down is z; the middle of the image is the origin
CAMERA = Camera(0, np.array([[0.0, 1.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.5]]), r2=0.9, pairs=99)


def sheet(closed: float) -> Sheet:
    """Two grey views of three images; the hand goes from the left to the right."""
    hands = np.zeros((1, 21, 10))
    hands[0, :, 1] = np.linspace(-0.4, 0.4, 21)
    hands[0, :, 9] = closed
    return Sheet(
        episode="e",
        instruction="go",
        frames=np.array([0, 10, 20]),
        images=(np.full((3, SIZE, SIZE, 3), 60, np.uint8),) * 2,
        hands=hands,
        turned=np.zeros((1, 21)),
        joints=None,
        joint_names=(),
        rate_hz=10.0,
    )


def pixels(closed: float, *cameras: Camera) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(contact_sheet(sheet(closed), cameras)))).astype(int)


def test_images_lie_in_rows_of_views() -> None:
    plain = pixels(0.0)
    assert plain.shape == (2 * SIZE + GAP, 3 * (SIZE + GAP) - GAP, 3)
    assert abs(plain[SIZE // 2, SIZE // 2] - 60).max() <= 3


def test_the_path_is_on_the_main_view_alone() -> None:
    drawn, plain = pixels(0.0, CAMERA), pixels(0.0)
    changed = abs(drawn - plain).max(axis=-1) > 30
    assert changed[:SIZE].any()
    assert not changed[SIZE + GAP :].any()
    rows, columns = np.nonzero(changed[:SIZE, :SIZE])
    assert rows.mean() == pytest.approx(SIZE / 2, abs=2)
    assert (columns.min(), columns.max()) == pytest.approx((0.1 * SIZE, 0.9 * SIZE), abs=8)


def test_the_hand_is_full_when_closed() -> None:
    right = round(0.9 * SIZE) + 2 * (SIZE + GAP)  # in the last image, where the way ends: orange
    above = SIZE // 2 - 4  # within the circle, beside the path
    closed, opened = (pixels(grip, CAMERA)[above, right] for grip in (1.0, 0.0))
    assert closed[0] > 180 > opened[0]


def test_a_camera_that_explains_little_is_not_used() -> None:
    poor = Camera(0, CAMERA.matrix, r2=0.3, pairs=99)
    assert usable([poor, CAMERA]) == (CAMERA,)
