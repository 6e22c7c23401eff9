"""Pixels and ids against the reference's processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.xvla_jax import golden
from xvla_jax.batch import normalise
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.processor import Processor


def test_golden_pixels() -> None:
    with np.load(golden.FOLDER / "processor.npz") as file:
        g = dict(file)
    processor = Processor(image_size=int(g["size"]))
    for sample, (pixels, mask) in enumerate(zip(g["pixel_values"], g["image_mask"], strict=True)):
        views = [g[f"image/{sample}/{v}"] for v in range(3) if f"image/{sample}/{v}" in g]
        images, ours = processor.prepare_images(views)
        np.testing.assert_array_equal(ours, mask)
        found = np.asarray(normalise(images))[mask].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, pixels[mask], atol=1e-6)


def test_bart_ids() -> None:
    ids = Processor(text_length=14).tokenize(
        ["Hello world", " Hello world", "pick up the black bowl and place it on the plate"]
    )
    assert ids.dtype == np.int32
    assert ids[0].tolist() == [0, 31414, 232, 2] + [1] * 10
    assert ids[1].tolist() == [0, 20920, 232, 2] + [1] * 10
    assert ids[2].tolist() == [0, 32041, 62, 5, 909, 5749, 8, 317, 24, 15, 5, 5299, 2, 1]


def test_long_text_is_cut_with_its_end_token() -> None:
    ids = Processor().tokenize(["the " * 80])
    assert ids.shape == (1, 50)
    assert ids[0, -1] == 2
    assert (ids != 1).all()


def test_files_round_trip(tmp_path: Path) -> None:
    processor = Processor(image_size=64, text_length=16)
    processor.write(tmp_path)
    read = Processor.read(tmp_path)
    assert read.to_dict() == processor.to_dict()
    assert read.tokenize(["Hello world"])[0, :4].tolist() == [0, 31414, 232, 2]


def test_released_file_is_read() -> None:
    assert Processor.from_dict(Processor().to_dict()) == Processor()


def test_settings_that_we_do_not_do_are_refused(tmp_path: Path) -> None:
    Processor().write(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"do_center_crop": True}))
    with pytest.raises(CheckpointError, match=r"unsupported values \{'do_center_crop': True\}"):
        Processor.read(tmp_path)
    path.write_text(json.dumps(raw | {"patches": 3}))
    with pytest.raises(CheckpointError, match=r"unknown fields \['patches'\]"):
        Processor.read(tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "has 0 images; 1 .. 3"),
        ([np.zeros((4, 4, 3), np.uint8)] * 4, "has 4 images"),
        ([np.zeros((4, 4, 3), np.float32)], r"image 0 is float32\[4, 4, 3\]"),
        ([np.zeros((4, 4, 4), np.uint8)], r"image 0 is uint8\[4, 4, 4\]"),
    ],
)
def test_images_of_another_kind_are_refused(images: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Processor().prepare_images(images)


def test_an_empty_instruction_is_refused() -> None:
    with pytest.raises(InputError, match="instruction is ' '"):
        Processor().tokenize([" "])
