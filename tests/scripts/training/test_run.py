"""Preprocessing of the checkpoint that a run begins with, in the batches that it trains on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import debug
from scripts.training.run import TrainingRun
from tests.xvla_jax.checkpoints import lerobot_exports as exports
from xvla_jax.errors import ConfigError
from xvla_jax.pretrained import save_pretrained

pytestmark = pytest.mark.rlds


def _config(root: Path, init_from: Path) -> Any:
    config: Any = debug.get_config()
    config.data.root = str(root)
    config.init_from = str(init_from)
    return config


def _first_images(run: TrainingRun) -> np.ndarray:
    batches = run.batches(None)
    try:
        return next(iter(batches))["images"]
    finally:
        batches.close()


def test_batches_are_resized_as_the_checkpoint_says(demos: Path, tmp_path: Path) -> None:
    images = {}
    for resize in ("pad", "linear"):
        made = exports.checkpoint("ee6d", resize=resize)
        assert made.processor
        smaller = dataclasses.replace(made.processor, image_size=12)  # than the demonstrations
        folder = tmp_path / resize
        save_pretrained(folder, made.config, made.params, "lerobot-native", processor=smaller)
        (folder / "preprocessor_config.json").unlink()  # as LeRobot itself saves it
        run = TrainingRun.open(_config(demos, folder))
        assert run.processor == smaller
        images[resize] = _first_images(run)
        assert (images[resize].dtype, images[resize].shape[2]) == (np.uint8, 12)
    difference = np.abs(images["pad"].astype(int) - images["linear"])
    assert difference.max() > 8, "one averages, the other picks"


def test_other_units_are_refused_by_field(demos: Path, tmp_path: Path) -> None:
    folder = exports.write_saved(tmp_path / "saved", "auto_mean_std")
    config = _config(demos, folder)
    config.action_mode = "ee6d"  # of the demonstrations; the weights were saved for joints
    with pytest.raises(ConfigError, match=r"normalization_mapping\.STATE is MEAN_STD; training"):
        TrainingRun.open(config)


def test_unknown_preprocessing_is_asked_for(demos: Path, tmp_path: Path) -> None:
    made = exports.checkpoint("ee6d")
    save_pretrained(tmp_path / "bare", made.config, made.params)
    with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json, and no LeRobot"):
        TrainingRun.open(_config(demos, tmp_path / "bare"))
