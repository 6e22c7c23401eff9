"""The first state of a run: a head that neither sees nor answers on channels of padding."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax.actions import action_space
from xvla_jax.lora import LoraConfig, init_adapter
from xvla_jax.models.xvla import XVLA, init_params
from xvla_jax.training.state import Recipe, init_state, without_padding

REAL = 6
CONFIG = dataclasses.replace(tiny.CONFIG, action_mode="auto", real_action_dim=REAL)
MODEL = XVLA(CONFIG)
RECIPE = Recipe(MODEL, tiny.RECIPE.config)
PARAMS = jax.tree.map(np.asarray, init_params(XVLA(tiny.CONFIG), jax.random.key(0)))


def denoised(params: Any, padding: float) -> np.ndarray:
    """The estimate from zeros with this value on the channels of padding."""
    width = action_space(CONFIG).width
    actions = jnp.zeros((1, CONFIG.num_actions, width)).at[..., REAL:].set(padding)
    context = MODEL.apply(
        {"params": params},
        jnp.zeros((1, 2, 32, 32, 3)),
        jnp.ones((1, 2), bool),
        jnp.zeros((1, 4), jnp.int32),
        method="encode",
    )
    estimate = MODEL.apply(
        {"params": params},
        context,
        actions,
        jnp.zeros((1, width)),
        jnp.zeros((1,), jnp.int32),
        jnp.ones((1,)),
        method="denoise",
    )
    return np.asarray(estimate)


@pytest.mark.parametrize("params", [PARAMS, None], ids=["of poses", "random"])
def test_padding_is_neither_seen_nor_answered(params: Any) -> None:
    state = init_state(RECIPE, tiny.mesh(1, 1), seed=0, params=params)
    quiet, noisy = denoised(state.params, 0.0), denoised(state.params, 3.0)
    np.testing.assert_array_equal(quiet, noisy)
    assert not quiet[..., REAL:].any()
    assert quiet[..., :REAL].any()
    # a head of poses sees it, which is what the state mends
    assert np.abs(denoised(PARAMS, 0.0) - denoised(PARAMS, 3.0)).max() > 1e-3


def test_the_real_channels_and_everything_else_stay() -> None:
    state = init_state(RECIPE, tiny.mesh(1, 1), seed=0, params=PARAMS)
    different = {
        jax.tree_util.keystr(path)
        for (path, ours), theirs in zip(
            jax.tree_util.tree_flatten_with_path(state.params)[0],
            jax.tree.leaves(PARAMS),
            strict=True,
        )
        if not np.array_equal(ours, theirs)
    }
    head = "['transformer']['action_{}coder']['kernel']"
    assert different == {head.format("en"), head.format("de")}
    for mode in ("ee6d", "agibot_ee6d"):
        full = dataclasses.replace(tiny.CONFIG, action_mode=mode)
        assert without_padding(PARAMS, full) is PARAMS, "nothing is padded"


def test_an_adapter_that_trains_the_heads_holds_the_zeros() -> None:
    lora = LoraConfig(rank=2, alpha=4)
    adapter = init_adapter(PARAMS, CONFIG, lora.peft(), seed=0)
    tensors = without_padding(jax.tree.map(jnp.asarray, adapter.tensors), CONFIG)
    assert not np.any(tensors["transformer"]["action_decoder"]["kernel"][..., REAL:])
    assert jax.tree.structure(tensors) == jax.tree.structure(dict(adapter.tensors))
