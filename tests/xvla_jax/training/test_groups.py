"""Rows of learning parameters: which one covers what, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.xvla_jax import tiny
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.models.xvla import abstract_params
from xvla_jax.training.groups import (
    MODES,
    group_sizes,
    join,
    label_tree,
    mode_groups,
    split,
    xvla_groups,
)
from xvla_jax.training.optimizer import OptimizerConfig, make_optimizer

_PARAMS: dict[str, Any] = {
    "vlm": {"layers": {"w": np.zeros((2, 3), np.float32)}},
    "transformer": {
        "soft_prompts": np.zeros((30, 4), np.float32),
        "action_decoder": {"kernel": np.zeros(5, np.float32)},
        "blocks": {"w": np.zeros((3, 7), np.float32)},
        "norm": {"scale": np.zeros(2, np.float32)},
    },
}
_MODEL = dataclasses.replace(tiny.CONFIG, depth=3)


def _groups(mode: str, model: XVLAConfig = _MODEL, last_layers: int = 1) -> Any:
    return mode_groups(mode, model, learning_coef=0.1, last_layers=last_layers)


def _added(params: Any, updates: Any) -> Any:
    return optax.apply_updates(params, updates)


def test_the_first_matching_row_wins() -> None:
    labels = label_tree(_PARAMS, xvla_groups(0.1))
    assert jax.tree.map(lambda label: [g.name for g in label.groups], labels) == {
        "vlm": {"layers": {"w": ["vlm"]}},
        "transformer": {
            "soft_prompts": ["soft_prompts"],
            "action_decoder": {"kernel": ["action_heads"]},
            "blocks": {"w": ["transformer_core"]},
            "norm": {"scale": ["transformer_core"]},
        },
    }


@pytest.mark.parametrize(
    ("mode", "sizes"),
    [
        ("xvla", {"vlm": 6, "soft_prompts": 120, "action_heads": 5, "transformer_core": 23}),
        ("xvla_pretrain", {"vlm": 6, "soft_prompts": 120, "action_heads": 5}),
        ("prompts", {"soft_prompts": 120, "rest": 34}),
        ("prompts_and_heads", {"soft_prompts": 120, "action_heads": 5, "rest": 29}),
        ("last_layers", {"last_layers": 9, "rest": 20}),
    ],
)
def test_what_each_mode_trains(mode: str, sizes: dict[str, int]) -> None:
    counts = group_sizes(_PARAMS, _groups(mode))
    assert sum(counts.values()) == 154
    assert {name: counts[name] for name in sizes} == sizes


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_covers_the_model_and_splits_it(mode: str) -> None:
    params = abstract_params(tiny.CONFIG)
    groups = _groups(mode, tiny.CONFIG)
    learning, frozen = split(params, groups)
    assert jax.tree.structure(join(learning, frozen)) == jax.tree.structure(params)
    sizes = group_sizes(params, groups)
    rest = sizes.get("rest", 0)
    if mode != "last_layers":  # there a stack of which some layers train is in the trained tree
        assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(frozen)) == rest
    assert learning


def test_an_unknown_mode_and_too_many_layers_are_errors() -> None:
    with pytest.raises(ConfigError, match="mode is 'all'; known are xvla, xvla_pretrain, prompts"):
        _groups("all")
    for count in (0, 4):
        with pytest.raises(ConfigError, match=rf"last_layers is {count}; this model has 1 .. 3"):
            _groups("last_layers", last_layers=count)


def test_layers_of_a_stack_learn_apart() -> None:
    config = OptimizerConfig(
        schedule="constant", iters=10, learning_rate=0.1, weight_decay=0.5, max_grad_norm=0.0
    )
    groups = _groups("last_layers", last_layers=2)
    params = jax.tree.map(jnp.ones_like, _PARAMS)
    learning, frozen = split(params, groups)
    assert set(frozen) == {"vlm"}
    optimizer = make_optimizer(config, groups)
    grads = jax.tree.map(jnp.ones_like, learning)
    updates: Any
    updates, _ = optimizer.update(
        grads,
        optimizer.init(learning),
        learning,
        norm=optax.tree.norm(grads),
        finite=jnp.array(True),
    )
    after = join(_added(learning, updates), frozen)
    # Adam's first step is 1, decay 0.5 * 1: 1 - 0.1 * 1.5
    np.testing.assert_allclose(after["transformer"]["blocks"]["w"][0], 1.0)
    np.testing.assert_allclose(after["transformer"]["blocks"]["w"][1:], 0.85, rtol=1e-6)
    np.testing.assert_allclose(after["transformer"]["soft_prompts"], 1 - 0.01 * 1.5, rtol=1e-6)


def test_the_pretraining_mode_decays_core_and_heads_only() -> None:
    config = OptimizerConfig(
        schedule="constant", iters=10, learning_rate=0.1, weight_decay=0.5, max_grad_norm=0.0
    )
    params = jax.tree.map(jnp.ones_like, _PARAMS)
    optimizer = make_optimizer(config, _groups("xvla_pretrain"))
    grads = jax.tree.map(jnp.zeros_like, params)
    updates: Any
    updates, _ = optimizer.update(
        grads, optimizer.init(params), params, norm=optax.tree.norm(grads), finite=jnp.array(True)
    )
    assert float(np.abs(updates["vlm"]["layers"]["w"]).max()) == 0
    assert float(np.abs(updates["transformer"]["soft_prompts"]).max()) == 0
    for name in ("blocks", "action_decoder", "norm"):
        for leaf in jax.tree.leaves(updates["transformer"][name]):
            np.testing.assert_allclose(leaf, -0.05, rtol=1e-6)
