"""Another action space on the same weights, through every layout and adapter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import pretrained
from xvla_jax.actions import action_space
from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint
from xvla_jax.checkpoints.hf_folder import Pretrained
from xvla_jax.checkpoints.relabel import relabelled, relabelled_config, trained_for_delay
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.lora import (
    LoraConfig,
    adapter_delay,
    adapter_space,
    init_adapter,
    load_adapter,
    save_adapter,
)
from xvla_jax.policy import Policy

_POSES = Contract(3, "ee6d", "contiguous", 20.0, ("front", "wrist"), "commanded")
_JOINTS = Contract(5, "auto", "none", 30.0, ("front",), "measured", (0, 1))
_LOADED = Pretrained(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {3: _POSES})


def test_poses_become_joints_and_joints_poses_where_the_head_is_as_wide() -> None:
    joints = relabelled_config(tiny.CONFIG, "auto", 6)
    space = action_space(joints)
    assert (space.mode, space.width, space.real_width) == ("auto", 20, 6)
    assert action_space(relabelled_config(joints, "", 7)).real_width == 7
    assert action_space(relabelled_config(joints, "AUTO", 0)).real_width == 6
    assert relabelled_config(joints, "ee6d", 0).action_mode == "ee6d"
    assert action_space(relabelled_config(tiny.CONFIG, "franka_joint7", 7)).real_width == 7
    assert relabelled_config(tiny.CONFIG, "", 0) == tiny.CONFIG


def test_a_head_of_14_channels_serves_up_to_14_joints() -> None:
    joint = relabelled_config(tiny.CONFIG, "joint", 0, any_width=True)
    space = action_space(relabelled_config(joint, "auto", 6))
    assert (space.width, space.real_width) == (14, 6)
    with pytest.raises(
        ConfigError, match=r"real_action_dim is 15 .* 1 to 14, .* width of the head"
    ):
        relabelled_config(joint, "auto", 15)
    with pytest.raises(
        ConfigError, match=r"'ee6d', whose head has 20 channels; .* has 14 \('joint"
    ):
        relabelled_config(joint, "ee6d", 0)


@pytest.mark.parametrize(
    ("mode", "real", "message"),
    [
        ("auto", 0, "config.real_action_dim is 0"),
        ("auto", -1, "config.real_action_dim is -1"),
        ("joint", 14, r"'joint', whose head has 14 channels; the checkpoint's head has 20"),
        ("franka_joint7", 6, "'franka_joint7' always has 7 channels"),
        ("", 7, "'ee6d' always has 20 channels; set config.action_mode=auto"),
        ("joints", 0, "'joints' is unknown"),
    ],
)
def test_what_the_head_cannot_be_is_refused(mode: str, real: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        relabelled_config(tiny.CONFIG, mode, real)


def test_only_what_says_what_channels_mean_is_changed() -> None:
    changed = relabelled(_LOADED, "auto", 6)
    assert changed.params is _LOADED.params
    assert changed.contracts == {}
    assert _LOADED.contracts == {3: _POSES}
    assert relabelled(_LOADED, "ee6d", 20) is _LOADED
    seven = relabelled(dataclasses.replace(changed, contracts={5: _JOINTS}), "", 7)
    assert seven.contracts == {}, "of 6 channels"


@pytest.mark.parametrize("between", pretrained.LAYOUTS)
@pytest.mark.parametrize("layout", pretrained.LAYOUTS)
def test_the_new_action_space_is_written_in_every_layout(
    between: str, layout: str, tmp_path: Path
) -> None:
    """LeRobot's fields about the old robot do not come back from the carried section."""
    pretrained.save_pretrained(
        tmp_path / "a", tiny.CONFIG, tiny.params(), between, processor=tiny.PROCESSOR
    )
    changed = relabelled(pretrained.load_checkpoint(tmp_path / "a"), "auto", 6)
    pretrained.save_pretrained(
        tmp_path / "b",
        changed.config,
        changed.params,
        layout,
        processor=changed.processor,
        contracts={5: _JOINTS},
        files=changed.files,
    )
    again = pretrained.load_checkpoint(tmp_path / "b")
    space = action_space(again.config)
    assert (space.mode, space.width, space.real_width) == ("auto", 20, 6)
    assert again.contracts == {5: _JOINTS}
    assert tiny.equal(again.params, _LOADED.params)
    if layout.startswith("lerobot"):
        raw = json.loads((tmp_path / "b" / "config.json").read_text())
        assert raw["output_features"]["action"]["shape"] == [6]
        pipeline = json.loads((tmp_path / "b" / "policy_postprocessor.json").read_text())
        features = pipeline["steps"][0]["config"]["features"]
        assert features["action"]["shape"] == [6]


@pytest.mark.parametrize("layout", pretrained.LAYOUTS)
def test_every_layout_says_which_delays_the_weights_know(layout: str, tmp_path: Path) -> None:
    delayed = relabelled(_LOADED, "", 0, 3)
    assert (delayed.contracts, delayed.params) == (_LOADED.contracts, _LOADED.params)
    assert relabelled(delayed, "", 0) is relabelled(delayed, "ee6d", 20, 3) is delayed
    parts = delayed.config, delayed.params, layout
    pretrained.save_pretrained(tmp_path / "a", *parts, processor=tiny.PROCESSOR)
    again = pretrained.load_checkpoint(tmp_path / "a")
    assert again.config == delayed.config
    assert again.config.rtc_max_delay == 3
    assert relabelled(again, "", 0, 0).config == tiny.CONFIG
    for wrong in (-2, tiny.CONFIG.num_actions):
        with pytest.raises(
            ConfigError, match=rf"config\.rtc\.max_delay is {wrong}; -1, .* 0 \.\. 5"
        ):
            trained_for_delay(tiny.CONFIG, wrong)


def test_an_adapter_takes_its_action_space_along(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "peft"
    pretrained.save_pretrained(
        base, tiny.CONFIG, tiny.params(), processor=tiny.PROCESSOR, contracts={3: _POSES}
    )
    joints = relabelled_config(tiny.CONFIG, "auto", 6)
    fresh = init_adapter(tiny.params(), joints, LoraConfig(rank=2).peft("BASE"), seed=0)
    joints = dataclasses.replace(joints, rtc_max_delay=3)
    save_adapter(folder, fresh, joints, relabelled=True, delayed=True)
    assert adapter_space(folder) == ("auto", 6)
    assert adapter_delay(folder) == 3
    assert tiny.equal(load_adapter(folder, joints).tensors, fresh.tensors)
    with pytest.raises(CheckpointError, match=r"trained with action space 'auto' \(6 .* 'ee6d'"):
        load_adapter(folder, tiny.CONFIG)
    convert_checkpoint(base, tmp_path / "merged", "hf", adapter=folder)
    merged = pretrained.load_checkpoint(tmp_path / "merged")
    assert action_space(merged.config).real_width == 6
    assert merged.config.rtc_max_delay == 3
    assert merged.contracts == {}
    policy = Policy.from_pretrained(base, adapter=folder)
    assert (policy.space.mode, policy.space.real_width) == ("auto", 6)
    assert policy.config.rtc_max_delay == 3
    save_adapter(tmp_path / "plain", fresh, tiny.CONFIG)
    assert adapter_space(tmp_path / "plain") == ("", 0)
    assert adapter_delay(tmp_path / "plain") == -1
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, load_adapter(tmp_path / "plain", joints).tensors, fresh.tensors
        )
    )
