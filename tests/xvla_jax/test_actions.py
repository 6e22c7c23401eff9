"""Action spaces against the golden file, and what they refuse."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import golden
from xvla_jax.actions import JOINTS, MODES, POSES, action_kind, action_space, misfit
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError, InputError


def _config(mode: str, real: int = 20, width: int = 20) -> XVLAConfig:
    base = golden.load("ee6d").config
    return dataclasses.replace(base, action_mode=mode, real_action_dim=real, max_action_dim=width)


@pytest.mark.parametrize("case", golden.CASES)
@pytest.mark.parametrize("mode", ["ee6d", "joint", "agibot_ee6d", "auto"])
def test_golden_action_spaces(case: str, mode: str) -> None:
    with np.load(golden.FOLDER / case / "action_spaces.npz") as file:
        prefix = f"space/{mode}/"
        g = {k.removeprefix(prefix): v for k, v in file.items() if k.startswith(prefix)}
    space = action_space(_config(mode, int(g.get("real_dim", 20)), int(g.get("max_dim", 20))))
    prediction, target = jnp.asarray(g["pred"]), jnp.asarray(g["target"])
    losses = space.losses(prediction, target)
    assert {f"loss/{name}" for name in losses} == {k for k in g if k.startswith("loss/")}
    for name, value in losses.items():
        golden.assert_close("action_spaces", value, g[f"loss/{name}"], rtol=1e-6)
    proprio, actions = space.preprocess(jnp.asarray(g["proprio"]), target)
    np.testing.assert_array_equal(proprio, g["pre_proprio"])
    np.testing.assert_array_equal(actions, g["pre_action"])
    golden.assert_close("action_spaces", space.postprocess(prediction), g["post"], rtol=1e-6)


def test_worked_loss() -> None:
    """Only x is 0.1 m off: position 500 * 0.01 / 3, and ln 2 for the undecided grippers."""
    target = jnp.zeros((1, 1, 20)).at[0, 0, 0].set(0.1)
    losses = action_space(_config("ee6d")).losses(jnp.zeros((1, 1, 20)), target)
    assert float(losses["position_loss"]) == pytest.approx(5 / 3, rel=1e-6)
    assert float(losses["rotate6D_loss"]) == 0
    assert float(losses["gripper_loss"]) == pytest.approx(math.log(2), rel=1e-6)
    assert float(sum(losses.values())) == pytest.approx(2.359814, abs=1e-6)


def test_so101_counts_arms_twice_and_cuts_to_twelve() -> None:
    space = action_space(_config("so101_bimanual"))
    losses = space.losses(jnp.zeros((1, 1, 20)), jnp.ones((1, 1, 12)))
    assert {k: float(v) for k, v in losses.items()} == {
        "joints_loss": 1.0,
        "gripper_loss": 1.0,
        "left_arm_loss": 1.0,
        "right_arm_loss": 1.0,
    }
    out = np.asarray(space.postprocess(jnp.zeros((1, 1, 20))))
    assert out.shape == (1, 1, 12)
    assert out[0, 0].tolist() == [0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0.5]


def test_franka_reads_seven_channels_only() -> None:
    space = action_space(_config("franka_joint7"))
    prediction = jnp.zeros((1, 1, 20)).at[..., 7:].set(100.0)
    assert float(space.losses(prediction, jnp.ones((1, 1, 7)))["joints_loss"]) == 1.0
    assert space.postprocess(prediction).shape == (1, 1, 7)


@pytest.mark.parametrize("mode", MODES)
def test_every_space_is_for_poses_or_for_joints(mode: str) -> None:
    space = action_space(_config(mode))
    poses = {"layout": "interleaved", "counts": [space.real_width // 2, space.real_width]}
    joints = {"layout": "none", "counts": [space.real_width]}
    fit, other = (poses, joints) if action_kind(mode) == POSES else (joints, poses)
    assert (action_kind(mode) == POSES) == any(term.name == "rotate6D_loss" for term in space.terms)
    for channels in fit["counts"]:
        assert not misfit(mode, space.real_width, rotation_layout=fit["layout"], channels=channels)
        assert misfit(mode, space.real_width, rotation_layout=other["layout"], channels=channels)
    for channels in (1, 5, 21):
        assert misfit(mode, space.real_width, rotation_layout=fit["layout"], channels=channels)


def test_a_misfit_says_what_is_there_and_what_is_taken() -> None:
    assert action_kind("auto") == JOINTS
    assert misfit("ee6d", 20, rotation_layout="none", channels=6) == (
        "6 channels of joints with rotation_layout 'none', but action space 'ee6d' takes 10 or 20 "
        "channels of poses with rotation_layout 'interleaved' or 'contiguous'"
    )
    assert misfit("auto", 6, rotation_layout="none", relative_channels=(5, 6)) == (
        "relative channels [6], but action space 'auto' has channels 0 to 5"
    )
    assert not misfit("joint", rotation_layout="none", relative_channels=(13,))


def test_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'ee7d'; known are agibot_ee6d, auto, ee6d"):
        action_space(_config("ee7d"))


def test_another_width_is_refused_by_number() -> None:
    with pytest.raises(InputError, match="last axis has 7 channels, expected 20"):
        action_space(_config("ee6d")).pad(jnp.zeros((2, 7)))


def test_real_width_beyond_the_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="real_action_dim is 21"):
        action_space(_config("auto", 21, 20))
