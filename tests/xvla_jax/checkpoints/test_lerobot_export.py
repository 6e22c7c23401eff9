"""Files of exports to LeRobot: cameras, widths, units and domain are the checkpoint's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.xvla_jax.checkpoints import lerobot_exports as exports
from xvla_jax.checkpoints.lerobot_pipelines import read_domain
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError
from xvla_jax.preprocessing.scaling import Scaling
from xvla_jax.pretrained import load_checkpoint


def _raw(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("mode", "width"), [("auto", 7), ("so101_bimanual", 12), ("ee6d", 20)])
def test_cameras_and_widths_are_the_contracts(mode: str, width: int, tmp_path: Path) -> None:
    raw = _raw(exports.write(tmp_path / "out", mode, "pad"))
    assert list(raw["input_features"]) == [
        "observation.images.top",
        "observation.images.left_wrist",
        "observation.state",
    ]
    assert raw["input_features"]["observation.state"]["shape"] == [width]
    assert raw["output_features"]["action"]["shape"] == [width]
    assert (raw["num_image_views"], raw["max_state_dim"]) == (3, 20)


def test_after_a_fine_tune_the_files_are_the_new_contracts(tmp_path: Path) -> None:
    """Cameras, domain and units that LeRobot's carried files still say are those of the source."""
    loaded = load_checkpoint(exports.write_saved(tmp_path / "saved", "auto_mean_std"))
    contract = dataclasses.replace(exports.contract("auto"), views=("left_wrist", "front"))
    assert loaded.processor
    processor = dataclasses.replace(loaded.processor, state=None, action=None, text_length=9)
    tuned = dataclasses.replace(loaded, contracts={3: contract}, processor=processor)
    folder = exports.save(tmp_path / "tuned", tuned)
    raw = _raw(folder)
    assert list(raw["input_features"])[:2] == [
        "observation.images.left_wrist",
        "observation.images.front",
    ]
    assert raw["input_features"]["observation.images.left_wrist"]["shape"] == [3, 480, 640]
    assert raw["tokenizer_max_length"] == 9
    assert set(raw["normalization_mapping"].values()) == {"IDENTITY"}
    assert read_domain({path.name: path.read_bytes() for path in folder.glob("policy_*")}) == 3
    assert not list(folder.glob("policy_*.safetensors"))
    assert load_checkpoint(folder).processor == processor


def test_made_statistics_are_read_back(tmp_path: Path) -> None:
    units = Scaling("MIN_MAX", (-1.0,) * 7, tuple(map(float, range(7))), 1e-8)
    made = exports.checkpoint(
        "auto", resize="none", state=units, action=units, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    again = load_checkpoint(exports.save(tmp_path / "out", made)).processor
    assert again
    assert made.processor
    np.testing.assert_allclose(again.mean + again.std, made.processor.mean + made.processor.std)
    assert dataclasses.replace(again, mean=(0.5,) * 3, std=(0.25,) * 3) == made.processor


def test_a_filter_that_lerobot_lacks_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exports.save(tmp_path / "out", exports.checkpoint("ee6d"))
    assert "resize 'stretch'); its own stretch is written ('linear')" in caplog.text
    processor = load_checkpoint(folder).processor
    assert processor
    assert processor.resize == "linear"
    assert _raw(folder)["resize_imgs_with_padding"] is None


def test_one_domain_of_several_is_said_or_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = exports.checkpoint("ee6d", resize="pad")
    contracts: dict[int, Contract] = {i: exports.contract("ee6d", i) for i in (5, 2)}
    made = dataclasses.replace(made, contracts=contracts)
    folders = [exports.save(tmp_path / "a", made), exports.save(tmp_path / "b", made, domain=5)]
    domains = [
        read_domain({path.name: path.read_bytes() for path in folder.glob("policy_*")})
        for folder in folders
    ]
    assert domains == [2, 5]
    assert sum("--domain=ID" in line for line in caplog.messages) == 1
    with pytest.raises(CheckpointError, match=r"--domain=7: .* \[2, 5\]"):
        exports.save(tmp_path / "c", made, domain=7)
    assert not (tmp_path / "c").exists()
