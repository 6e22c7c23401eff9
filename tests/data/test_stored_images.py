"""The one door for images that a recording keeps in arrays."""

import numpy as np
import pytest

from data.faults import FaultError
from data.images import (
    CHANNELS_FIRST,
    ENCODED,
    PIXELS,
    FileImages,
    image_form,
    stored_image,
    stored_images,
)
from tests.data.small_sets import encoded, image

# red left of the middle, blue right of it: 6 high, 8 wide
HALVES = np.zeros((6, 8, 3), np.uint8)
HALVES[:, :4], HALVES[:, 4:] = (200, 0, 0), (0, 0, 200)


@pytest.mark.parametrize(
    ("dtype", "shape", "form"),
    [
        ("S90", (), ENCODED),
        ("V90", (), ENCODED),
        ("uint8", (90,), ENCODED),
        ("int8", (90,), ENCODED),
        ("uint8", (640, 480, 3), PIXELS),
        ("uint8", (256, 256, 3), PIXELS),
        ("uint8", (4, 1, 3), PIXELS),
        ("uint8", (3, 480, 640), CHANNELS_FIRST),
        ("uint8", (3, 5, 5), CHANNELS_FIRST),
    ],
    ids=str,
)
def test_forms_that_are_read(dtype, shape, form):
    assert image_form(np.dtype(dtype), shape, "top") == form


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (48, 64, 3)),
        ("uint16", (48, 64, 3)),
        ("int8", (48, 64, 3)),
        ("bool", (48, 64, 3)),
        ("bool", (90,)),
        ("int64", (90,)),
        ("float32", ()),
        ("uint8", ()),
        ("uint8", (48, 64)),
        ("uint8", (48, 64, 1)),
        ("uint8", (48, 64, 4)),
        ("uint8", (48, 64, 2)),
        ("uint8", (1, 48, 64, 3)),
        ("uint8", (0, 64, 3)),
        ("uint8", (3, 48, 3)),
        ("uint8", (3, 3, 3)),
        ("uint8", (3, 48, 4)),
        ("uint8", (3, 48, 1)),
    ],
    ids=str,
)
def test_others_are_named_with_what_is_read(dtype, shape):
    with pytest.raises(FaultError, match=r"an image of top is .*uint8\[3, H, W\]") as error:
        image_form(np.dtype(dtype), shape, "top")
    assert error.value.kind == "malformed"
    assert f"{dtype}{list(shape)}" in str(error.value)


def test_pixels_keep_their_places_whatever_their_layout():
    for value in (HALVES, np.moveaxis(HALVES, -1, 0)):
        np.testing.assert_array_equal(stored_image(value, "top"), HALVES)


def test_encoded_images_are_the_bytes_of_their_file():
    data = encoded(HALVES)
    for value in (data, np.bytes_(data), np.frombuffer(data, np.uint8), np.void(data)):
        assert stored_image(value, "top") == data


@pytest.mark.parametrize("rows", [np.stack([HALVES] * 6), [HALVES] * 6, [encoded(HALVES)] * 6])
def test_a_view_is_one_image_per_row(rows):
    images = stored_images(rows, "top")
    assert images.shape == (6,)
    np.testing.assert_array_equal(images.take(np.array([5, 0]))[1], rows[0])


def test_files_lie_below_the_folder_or_anywhere(tmp_path):
    (tmp_path / "in").mkdir()
    data = [encoded(image(0, 0, i)) for i in range(3)]
    (tmp_path / "in/0.png").write_bytes(data[0])
    (tmp_path / "1.png").write_bytes(data[1])
    places = np.array(["0.png", str(tmp_path / "1.png"), data[2], "gone.png"], object)
    view = FileImages(tmp_path / "in", places)
    assert len(view) == 4
    assert [view[i] for i in range(3)] == data
    assert view.take(np.array([2, 0]))[1] == data[0]
    with pytest.raises(ValueError, match=r"in/gone\.png"):
        view[3]
