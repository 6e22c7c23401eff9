"""Preprocessing of LeRobot folders, against what LeRobot itself made of raw observations."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.equivalence.torch_process import TorchOptions, TorchReference
from tests.xvla_jax.checkpoints import lerobot_cases as cases
from tests.xvla_jax.checkpoints import lerobot_exports as exports
from xvla_jax.errors import CheckpointError
from xvla_jax.policy import Policy
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor

_GATE = 1e-5  # of the largest value
_PYTHON = os.environ.get("XVLA_LEROBOT_PYTHON", "")
_VERSIONS = ("0.4.4", "0.6.1")


def _raw(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize(("mode", "resize"), exports.EXPORTS)
def test_an_export_acts_as_in_lerobot(version: str, mode: str, resize: str, tmp_path: Path) -> None:
    folder = exports.write(tmp_path / "out", mode, resize)
    outputs = exports.of_folder(folder, exports.observations(mode))["robot_actions"]
    with np.load(cases.FOLDER / version / "export_actions.npz") as golden:
        assert exports.quotient(outputs, golden[f"{mode}/{resize}"]) < _GATE


@pytest.mark.parametrize("name", sorted(cases.SAVED))
def test_what_lerobot_saves_acts_as_there(name: str, tmp_path: Path) -> None:
    """Statistics, image side, text length, views and max_state_dim come from its own files."""
    saved = cases.SAVED[name]
    folder = exports.write_saved(tmp_path / "saved", name)
    outputs = exports.of_folder(
        folder, cases.observations(saved.size, saved.state, 20), domain_id=0
    )
    with np.load(cases.FOLDER / saved.lerobot / name / "outputs.npz") as golden:
        expected = dict(golden)
    np.testing.assert_array_equal(outputs["input_ids"], expected["input_ids"])
    width = saved.state
    assert exports.quotient(outputs["proprio"][:, :width], expected["proprio"][:, :width]) < 1e-6
    assert not outputs["proprio"][:, width:].any()
    assert exports.quotient(outputs["pixel_values"], expected["pixel_values"]) < 1e-6
    assert exports.quotient(outputs["robot_actions"], expected["robot_actions"]) < _GATE


@pytest.mark.parametrize("layout", ["hf", "orbax", "lerobot-native", "lerobot-vendored"])
def test_units_and_images_survive_every_layout(layout: str, tmp_path: Path) -> None:
    loaded = load_checkpoint(exports.write_saved(tmp_path / "saved", "auto_quantiles"))
    again = load_checkpoint(exports.save(tmp_path / "other", loaded, layout))
    assert again.processor == loaded.processor
    back = exports.save(tmp_path / "back", again, "lerobot-native")
    assert load_checkpoint(back).processor == loaded.processor
    for path in (tmp_path / "saved").glob("policy_*"):
        assert (back / path.name).read_bytes() == path.read_bytes()
    assert list(_raw(back)["input_features"]) == list(_raw(tmp_path / "saved")["input_features"])


def test_a_policy_serves_what_lerobot_saves(tmp_path: Path) -> None:
    policy = Policy.from_pretrained(exports.write_saved(tmp_path / "saved", "auto_mean_std"))
    arrays = cases.observations((480, 640), 8, 20)
    chunks = policy.act(
        [
            {
                "images": list(arrays["images"][0]),
                "instruction": cases.TASKS[0],
                "proprio": arrays["proprio"][0],
                "domain_id": 0,
            }
        ]
    )
    assert chunks.shape == (1, cases.CHUNK, 7)
    means = np.array(cases.SAVED["auto_mean_std"].stats["action"]["mean"])
    assert np.abs(chunks - means).max() > 1  # in the robot's units, not in deviations
    assert np.abs(chunks).max() > 10


@pytest.mark.parametrize(
    ("name", "rows"), [("auto_mean_std", "20 .. 31.* cut"), ("franka_narrow_state", "8 .. 19.*add")]
)
def test_rows_that_see_zeros_are_cut_or_added_and_said(
    name: str, rows: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exports.write_saved(tmp_path / "saved", name)
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(folder, stored=True)
    assert any("max_state_dim" in line and _matches(rows, line) for line in caplog.messages)
    again = exports.save(tmp_path / "again", loaded)
    assert _raw(again)["max_state_dim"] == 20
    caplog.clear()
    assert load_checkpoint(again).config == loaded.config
    assert caplog.messages == []


def _matches(pattern: str, line: str) -> bool:
    first, _, last = pattern.partition(".*")
    return first in line and last.strip() in line


def test_a_state_wider_than_the_actions_is_refused(tmp_path: Path) -> None:
    folder = exports.write_saved(tmp_path / "saved", "auto_mean_std")
    _edit(
        folder / "config.json",
        lambda raw: raw["input_features"]["observation.state"].update(shape=[26]),
    )
    with pytest.raises(CheckpointError, match=r"observation\.state has 26 channels .* is 32"):
        load_checkpoint(folder)


_BEFORE, _AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
_STATS = "policy_preprocessor_step_7_normalizer_processor.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda r: r.update(resize_imgs_with_padding=[32, 24]), "32 x 24 px come"),
        (
            "config.json",
            lambda r: r.update(resize_imgs_with_padding=None),
            "480 x 640 px come from input_features, as resize_imgs_with_padding is null",
        ),
        (_BEFORE, lambda r: r["steps"].append({"registry_name": "crop"}), r"steps \['crop'\]"),
        (
            _BEFORE,
            lambda r: r["steps"][2]["config"].update(tokenizer_name="gpt2"),
            "tokenizer_name 'gpt2'",
        ),
        (
            _BEFORE,
            lambda r: r["steps"][2]["config"].update(padding_side="left"),
            "padding_side of tokenizer_processor is 'left'; 'right'",
        ),
        (
            _BEFORE,
            lambda r: r["steps"][2]["config"].pop("max_length"),
            "max_length None",
        ),
        (
            _BEFORE,
            lambda r: r["steps"][4]["config"].update(image_keys=["observation.images.top"]),
            "image_keys of xvla_imagenet_normalize",
        ),
        (
            _BEFORE,
            lambda r: r["steps"][7]["config"]["norm_map"].update(STATE="ZSCORE"),
            r"norm_map\.STATE is 'ZSCORE'",
        ),
        (
            _BEFORE,
            lambda r: r["steps"][7]["config"]["norm_map"].update(STATE="MIN_MAX"),
            r"norm_map\.STATE is 'MIN_MAX', and observation\.state has the statistics \['mean'",
        ),
        (_BEFORE, lambda r: r["steps"].insert(3, r["steps"].pop(7)), "are in the order"),
        (_BEFORE, lambda r: r["steps"][6]["config"].update(float_dtype="bfloat16"), "float_dtype"),
        (
            _AFTER,
            lambda r: r["steps"].append({"registry_name": "xvla_rotation_6d_to_axis_angle"}),
            "xvla_rotation_6d_to_axis_angle",
        ),
        (
            _BEFORE,
            lambda r: r["steps"][2]["config"].update(max_length=10**9),
            r"processor\.text_length is 1000000000; allowed is",
        ),
        (_BEFORE, lambda r: r["steps"][7].update(state_file="../x"), "names a file '../x'"),
        (_BEFORE, lambda r: r["steps"][7]["config"].update(eps="small"), r"config\.eps is 'small'"),
        (_AFTER, lambda r: r["steps"].append(3), r"steps\.\d+ is 3; allowed is"),
        (_AFTER, lambda r: r.pop("steps"), r"policy_postprocessor\.json: steps is missing"),
    ],
)
def test_what_is_not_done_here_is_refused_by_field(
    file: str, change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    folder = exports.write_saved(tmp_path / "saved", "auto_mean_std")
    _edit(folder / file, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder, stored=True)


@pytest.mark.parametrize("missing", [_BEFORE, _AFTER, _STATS])
def test_missing_statistics_are_asked_for(missing: str, tmp_path: Path) -> None:
    folder = exports.write_saved(tmp_path / "saved", "auto_mean_std")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing}.*(missing|is missing)"):
        load_checkpoint(folder, stored=True)


def test_cameras_of_different_statistics_are_refused(tmp_path: Path) -> None:
    folder = exports.write_saved(tmp_path / "saved", "auto_quantiles")
    _edit(
        folder / _BEFORE,
        lambda raw: raw["steps"][7]["config"]["features"].pop("observation.images.top"),
    )
    with pytest.raises(CheckpointError, match=r"norm_map\.VISUAL normalises .* different"):
        load_checkpoint(folder, stored=True)


def test_identity_without_pipelines_is_what_the_config_says(tmp_path: Path) -> None:
    folder = exports.write(tmp_path / "out", "ee6d", "pad")
    for name in (_BEFORE, _AFTER, "preprocessor_config.json"):
        (folder / name).unlink()
    assert load_checkpoint(folder, stored=True).processor == Processor(
        image_size=cases.SIDE, text_length=cases.TEXT, resize="pad"
    )
    _edit(folder / "config.json", lambda raw: raw.pop("tokenizer_max_length"))
    assert load_checkpoint(folder, stored=True).processor is None
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json, and no LeRobot"):
        Policy.from_pretrained(folder)


@pytest.mark.torch
@pytest.mark.parametrize(("mode", "resize"), exports.EXPORTS)
def test_installed_lerobot_acts_the_same(mode: str, resize: str, tmp_path: Path) -> None:
    if not _PYTHON:
        pytest.skip("XVLA_LEROBOT_PYTHON is not set")
    folder = exports.write(tmp_path / "out", mode, resize)
    arrays = exports.observations(mode)
    with TorchReference(folder, TorchOptions("lerobot", python=_PYTHON)) as reference:
        theirs = reference.raw(arrays, cases.TASKS, tokenizer=folder)
    ours = exports.of_folder(folder, arrays)
    assert exports.quotient(ours["pixel_values"], theirs["pixel_values"]) < 2e-6
    assert exports.quotient(ours["robot_actions"], theirs["robot_actions"]) < _GATE
