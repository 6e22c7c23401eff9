"""Dropout and drop path in training: each place, its rate, and nothing besides."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xvla_jax
from tests.xvla_jax import golden
from tests.xvla_jax.random_sites import HEAD_RATE, RATES, Shape, random_sites, with_rates
from xvla_jax import flow
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import Context


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Lengths of the sequences, in tokens."""

    batch: int
    images: int  # that go through the tower
    text: int  # first view and text
    head: int  # actions, text, other views, prompts
    actions: int


def _sizes(case: golden.Case) -> _Sizes:
    out, (batch, views) = case.outputs, case.inputs["image_mask"].shape
    text = out["vlm_features"].shape[1]
    actions = case.inputs["action"].shape[1]
    head = actions + text + out["aux_visual_inputs"].shape[1] + case.config.len_soft_prompts
    return _Sizes(batch, batch * views, text, head, actions)


def _places(config: XVLAConfig, s: _Sizes) -> Counter[tuple[float, Shape]]:
    """The reference's table: (probability to keep, shape of the mask) -> how many."""
    text, width, hidden = config.text, config.text.d_model, config.hidden_size
    masks: Counter[tuple[float, Shape]] = Counter()

    def add(rate: float, shape: tuple[int, ...], times: int = 1) -> None:
        if rate:
            masks[round(1 - rate, 5), shape] += times

    for rate in np.linspace(0, config.vision.drop_path_rate, 2 * sum(config.vision.depths)):
        add(float(rate), (s.images, 1, 1, 1), 2)  # attention, MLP
    sequence = (s.batch, s.text, width)
    layers = text.encoder_layers
    add(text.dropout, sequence)  # after the embedding's norm
    add(text.attention_dropout, (s.batch, text.encoder_attention_heads, s.text, s.text), layers)
    add(text.dropout, sequence, 2 * layers)  # after the attention's projection, after fc2
    add(text.activation_dropout, (s.batch, s.text, text.encoder_ffn_dim), layers)
    add(HEAD_RATE, (s.batch, config.num_heads, s.head, s.head), config.depth)
    add(HEAD_RATE, (s.batch, s.head, int(hidden * config.mlp_ratio)), config.depth)
    add(HEAD_RATE, (s.batch, s.head, hidden), config.depth)
    return masks


def _loss_draws(
    case: golden.Case, config: XVLAConfig, *, train: bool
) -> tuple[set[tuple[float, Shape]], Counter[Shape]]:
    """Random sites of the loss."""
    model, t = xvla_jax.XVLA(config), jnp.full(len(case.pixels), 0.5)

    def loss(params: Any, batch: Any, noise: jax.Array, key: jax.Array) -> Any:
        rng = key if train else None
        return flow.loss_terms(model, params, batch, noise=noise, t=t, rng=rng)

    noise = jnp.asarray(case.inputs["train_noise"][0])
    return random_sites(loss, case.params, case.batch(), noise, jax.random.key(0))


def _by_shape(places: Counter[tuple[float, Shape]]) -> Counter[Shape]:
    draws: Counter[Shape] = Counter()
    for (_, shape), times in places.items():
        draws[shape] += times
    return draws


@pytest.mark.parametrize("name", ["ee6d", "joint_hetero"])
def test_every_place_of_dropout_and_no_other(name: str) -> None:
    case = golden.load(name)
    config = with_rates(case.config, **RATES)
    masks, draws = _loss_draws(case, config, train=True)
    places = _places(config, _sizes(case))
    assert masks == set(places)
    assert draws == _by_shape(places), "the network draws masks and nothing else"


def test_with_rates_of_zero_the_head_alone_drops() -> None:
    case = golden.load("ee6d")
    config = with_rates(case.config, text=(0.0, 0.0, 0.0), path=0.0)
    masks, draws = _loss_draws(case, config, train=True)
    assert draws == _by_shape(_places(config, _sizes(case)))
    assert {keep for keep, _ in masks} == {0.9}
    assert sum(draws.values()) == 3 * config.depth


def test_evaluation_draws_nothing() -> None:
    case = golden.load("ee6d")
    assert _loss_draws(case, case.config, train=False) == (set(), Counter())

    def act(params: Any, batch: Any, noise: jax.Array) -> Any:
        images = (batch["pixels"], batch["view_mask"], batch["input_ids"])
        context = case.model.apply({"params": params}, *images, method="encode")
        state = (batch["proprio"], batch["domain_id"])
        context = cast(Context, context)
        return flow.sample(case.model, params, context, *state, noise=noise, steps=3)

    noise = jnp.asarray(case.inputs["sample_noise"])
    assert random_sites(act, case.params, case.batch(), noise) == (set(), Counter())
