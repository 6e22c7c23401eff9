"""Inventories of stored tensors, digests of parameters, and differences of configs by field."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.xvla_jax import golden
from xvla_jax.checkpoint_tools import compare
from xvla_jax.checkpoints import fingerprints
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError, ConfigError

_SHARED = "vlm.language_model.model.shared.weight"
_ALIAS = "vlm.language_model.model.encoder.embed_tokens.weight"
_CASE = golden.FOLDER / "joint_hetero"


def _native(folder: Path) -> Path:
    shutil.copy(_CASE / "config.json", folder)
    shutil.copy(_CASE / "lerobot_native.safetensors", folder / "model.safetensors")
    return folder


def test_released_and_native_files_hold_the_same_parameters(tmp_path: Path) -> None:
    released = compare.take_inventory(_CASE)
    native = compare.take_inventory(_native(tmp_path))
    assert (released.layout, native.layout) == ("hf", "lerobot-native")
    assert released.values == native.values == 145_286
    assert released.parameters == native.parameters
    assert dict(released.dtypes) == {"float32": released.parameters}
    assert [len(i.buffers) for i in (released, native)] == [2, 1]  # no final_logits_bias there
    assert released.aliases == native.aliases == released.unused == native.unused == ()


def test_second_names_and_unused_tensors_are_distinguished(tmp_path: Path) -> None:
    shutil.copy(_CASE / "config.json", tmp_path)
    tensors = load_file(_CASE / "model.safetensors")
    tensors |= {_ALIAS: tensors[_SHARED], "vlm.stranger": np.zeros(3, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    inventory = compare.take_inventory(tmp_path)
    assert inventory.aliases == (_ALIAS,)
    assert inventory.unused == ("vlm.stranger",)
    assert inventory.values == 145_286
    json.dumps(inventory.to_dict())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        compare.take_inventory(tmp_path / "nowhere")


def _prints(change: Any = None, dtype: str = "float32") -> dict[str, fingerprints.Fingerprint]:
    case = golden.load("ee6d")
    params: Any = copy.deepcopy(dict(case.params))
    if change:
        change(params)
    return fingerprints.fingerprints(params, case.config, dtype=dtype)


def _nudge_layer_one(params: Any) -> None:
    params["transformer"]["blocks"]["norm1"]["bias"][1, 3] += 0.5


def test_one_changed_value_is_named() -> None:
    comparison = fingerprints.compare_parameters(_prints(), _prints(_nudge_layer_one))
    assert comparison["differing"] == 1
    assert comparison["equal"] == comparison["compared"] - 1
    (entry,) = comparison["most_different"]
    assert entry["name"] == "transformer.blocks.1.norm1.bias"
    assert entry["largest_difference"] == pytest.approx(0.5)


def test_values_are_compared_after_rounding_to_the_coarser_type() -> None:
    def lose_bits(params: Any) -> None:
        scale = params["transformer"]["norm"]["scale"]
        scale[...] = 1.0 + 2.0**-12  # a bfloat16 has 8 bits

    def rounded(params: Any) -> None:
        params["transformer"]["norm"]["scale"][...] = 1.0

    in_float32 = fingerprints.compare_parameters(_prints(lose_bits), _prints(rounded))
    assert [e["name"] for e in in_float32["most_different"]] == ["transformer.norm.weight"]
    kind = "bfloat16"
    in_bfloat16 = fingerprints.compare_parameters(_prints(lose_bits, kind), _prints(rounded, kind))
    assert in_bfloat16["differing"] == 0


def test_fields_that_training_alone_reads_may_differ() -> None:
    config = golden.load("ee6d").config
    text = dataclasses.replace(config.text, dropout=0.7)
    raw = config.to_dict() | {"soft_prompt_length": 99}
    other = dataclasses.replace(XVLAConfig.from_dict(raw), text=text)
    differences = compare.config_differences(config, other)
    assert differences["florence_config.text_config.dropout"] == (config.text.dropout, 0.7)
    assert differences["soft_prompt_length"][1] == 99
    assert len(differences) == 2


def test_other_models_are_refused_with_every_field() -> None:
    config = golden.load("ee6d").config
    vision = dataclasses.replace(config.vision, window_size=4)
    other = dataclasses.replace(config, vision=vision, action_mode="agibot_ee6d")
    with pytest.raises(ConfigError, match="different models") as error:
        compare.config_differences(config, other)
    assert "vision.window_size: 3 and 4" in str(error.value)
    assert "action_mode: 'ee6d' and 'agibot_ee6d'" in str(error.value)
