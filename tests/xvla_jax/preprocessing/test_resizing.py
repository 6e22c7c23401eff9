"""Ways of making squares, against what LeRobot makes of the same images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.xvla_jax.checkpoints import lerobot_cases as cases
from xvla_jax.batch import normalise
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.preprocessing.resizing import RESIZING
from xvla_jax.processor import Processor

_VERSIONS = sorted(path.parent.name for path in cases.FOLDER.glob("*/pixels.npz"))


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("mode", ["pad", "linear"])
def test_pixels_are_lerobots(version: str, mode: str) -> None:
    """Landscape, portrait, wide, square, as large as the network's, and smaller."""
    processor = Processor(image_size=cases.SIDE, resize=mode)
    with np.load(cases.FOLDER / version / "pixels.npz") as golden:
        expected = {size: golden[f"{mode}/{size[0]}x{size[1]}"] for size in cases.SIZES}
    for size, theirs in expected.items():
        image = cases.observations(size, 20, 20)["images"][1, 0]
        actual = np.asarray(normalise(processor.fit(image))).transpose(2, 0, 1)
        np.testing.assert_allclose(actual, theirs, atol=5e-6, err_msg=str(size))


def test_margins_are_above_and_left_and_vanish_when_normalised() -> None:
    processor = Processor(image_size=8, resize="pad")
    wide = np.asarray(normalise(processor.fit(np.full((4, 16, 3), 255, np.uint8))))
    assert np.abs(wide[:6]).max() < 1e-6
    assert wide[6:].min() > 2
    tall = np.asarray(normalise(processor.fit(np.full((16, 4, 3), 255, np.uint8))))
    assert np.abs(tall[:, :6]).max() < 1e-6
    assert tall[:, 6:].min() > 2


@pytest.mark.parametrize("mode", list(RESIZING))
def test_an_image_of_the_right_size_stays(mode: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    processor = Processor(image_size=8, resize=mode)
    views, mask = processor.prepare_images([image])
    np.testing.assert_array_equal(views[0], image)
    assert views.dtype == processor.pixel_dtype
    assert mask.tolist() == [True, False, False]


def test_training_sees_the_same_to_half_a_level() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    processor = Processor(image_size=16, resize="pad")
    levels = processor.fit_levels(image)
    assert levels.dtype == np.uint8
    assert np.abs(levels - processor.fit(image)).max() <= 0.5
    assert processor.training_fit is not None
    assert Processor().training_fit is None
    assert dataclasses.replace(Processor(), resample=2).training_fit is not None


def test_what_cannot_be_resized_is_refused_by_name() -> None:
    none = Processor(image_size=8, resize="none")
    with pytest.raises(InputError, match=r"image 1 is 6 x 4 px; this checkpoint resizes none .* 8"):
        none.prepare_images([np.zeros((8, 8, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)])
    with pytest.raises(InputError, match="image 0 is 1 x 99 px; within 8 x 8 nothing is left"):
        Processor(image_size=8, resize="pad").prepare_images([np.zeros((1, 99, 3), np.uint8)])
    with pytest.raises(CheckpointError, match="resize is 'crop'; known are stretch, pad, linear"):
        Processor(resize="crop")


@pytest.mark.parametrize("mode", list(RESIZING))
def test_every_way_survives_files_and_items(mode: str, tmp_path: Path) -> None:
    processor = Processor(image_size=16, resize=mode)
    processor.write(tmp_path)
    assert Processor.read(tmp_path) == processor
    assert Processor.from_dict(processor.to_dict()) == processor


def test_an_unknown_field_of_ours_is_refused(tmp_path: Path) -> None:
    Processor(resize="pad").write(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"resize"', '"resized"'))
    with pytest.raises(CheckpointError, match=r"xvla_jax\.resized is an unknown field"):
        Processor.read(tmp_path)
