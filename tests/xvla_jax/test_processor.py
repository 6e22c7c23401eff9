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
        actual = np.asarray(normalise(images))[mask].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(actual, pixels[mask], atol=1e-6)


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


def test_fields_that_mean_nothing_survive_and_null_asks_for_nothing(tmp_path: Path) -> None:
    Processor().write(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    more = {"crop_size": {"height": 224, "width": 224}, "auto_map": {"A": "b"}, "data_format": None}
    raw = json.loads(path.read_text()) | more
    path.write_text(json.dumps(raw))
    loaded = Processor.from_dict(Processor.read(tmp_path).to_dict())
    assert loaded == Processor()
    (tmp_path / "again").mkdir()
    loaded.write(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text()) == raw


def _vocabulary(folder: Path, edit: dict[str, int | None], merges: bool) -> None:
    Processor().write(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text()) | edit
    vocabulary = {token: number for token, number in vocabulary.items() if number is not None}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    if not merges:
        (folder / "merges.txt").unlink()


def test_the_released_vocabulary_needs_no_merges_and_may_have_places(tmp_path: Path) -> None:
    _vocabulary(tmp_path, {"<loc_0>": 50265}, merges=False)
    assert Processor.read(tmp_path).tokenizer_dir is None
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    assert Processor.read(tmp_path).tokenizer_dir is None


def test_another_tokenizer_is_used_and_never_lost_silently(tmp_path: Path) -> None:
    _vocabulary(tmp_path, {"Hello": 232, "Ġworld": 31414}, merges=True)
    processor = Processor.read(tmp_path)
    assert processor.tokenize(["Hello world"])[0, :4].tolist() == [0, 232, 31414, 2]
    with pytest.raises(CheckpointError, match="is not X-VLA's"):
        processor.to_dict()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="its vocabulary is another than X-VLA's"):
        Processor.read(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: not JSON"):
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
