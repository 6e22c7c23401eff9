"""Dropout, drop path, key biases, time embedding and per-domain layers, with known weights."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.xvla_jax import tiny
from xvla_jax.models.davit import DropPath, WindowAttention
from xvla_jax.models.florence import BartAttention
from xvla_jax.models.layers import DomainLinear, Dropout, SelfAttention, time_embedding
from xvla_jax.models.soft_transformer import PolicyBlock

_DRAWS = 40_000
_GELU_1 = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))


def _block_params(part: str) -> dict[str, Any]:
    """A policy block of width 2 in which one half writes into channel 0 and the other is silent."""
    block = PolicyBlock(width=2, num_heads=1, mlp_hidden=1)
    x = jnp.zeros((1, 1, 2))
    shapes = jax.eval_shape(lambda key: block.init(key, x, False), jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    params["norm2"]["scale"][:] = 1
    if part == "mlp":  # gelu(norm(x)[0]) -> channel 0
        params["mlp"]["fc1"]["kernel"][0, 0] = 1
        params["mlp"]["fc2"]["kernel"][0, 0] = 1
    else:  # the only value is (1, 1): attention gives what is left of its probability 1
        params["attn"]["qkv"]["bias"][4:] = 1
        params["attn"]["proj"]["kernel"][0, 0] = 1
    return params


def _block_delta(part: str, *, train: bool, seed: int = 0) -> np.ndarray:
    x = jnp.tile(jnp.array([1.0, -1.0]), (_DRAWS, 1, 1))  # its own LayerNorm
    y, _ = PolicyBlock(width=2, num_heads=1, mlp_hidden=1).apply(
        {"params": _block_params(part)}, x, train, rngs={"dropout": jax.random.key(seed)}
    )
    return np.asarray(y - x)[:, 0, 0]


@pytest.mark.parametrize(
    ("part", "value", "keep"),
    [("attention", 1.0, 0.9), ("mlp", _GELU_1, 0.9 * 0.9)],
)
def test_dropout_of_the_head(part: str, value: float, keep: float) -> None:
    """Rate 0.1: once on the probability, twice in the MLP. Scaling keeps the mean."""
    actual = _block_delta(part, train=True)
    kept = actual > 0
    np.testing.assert_allclose(actual[kept], value / keep, rtol=1e-4)
    assert kept.mean() == pytest.approx(keep, abs=4 * math.sqrt(keep * (1 - keep) / _DRAWS))
    assert actual.mean() == pytest.approx(value, rel=0.015)
    assert actual.var() == pytest.approx(value**2 * (1 / keep - 1), rel=0.06)
    assert not np.array_equal(actual, _block_delta(part, train=True, seed=1))


@pytest.mark.parametrize(("part", "value"), [("attention", 1.0), ("mlp", _GELU_1)])
def test_evaluation_drops_nothing(part: str, value: float) -> None:
    np.testing.assert_allclose(_block_delta(part, train=False), value, rtol=1e-4)


def test_drop_path_drops_all_of_a_sample() -> None:
    x = jnp.full((_DRAWS, 2, 3), 3.0)
    rngs = {"dropout": jax.random.key(0)}
    actual = np.asarray(DropPath(0.25).apply({}, x, train=True, rngs=rngs)).reshape(_DRAWS, 6)
    assert (actual == actual[:, :1]).all()
    assert set(np.unique(actual)) == {0.0, 4.0}
    assert (actual[:, 0] > 0).mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x, train=False), x)


def test_drop_path_rates_rise_from_zero_over_the_tower() -> None:
    """Rates of the eight blocks, spatial before channel: seven equal steps from 0 to 0.1."""
    rates: list[Any] = []

    def spy(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, DropPath) and context.method_name == "__call__":
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    b, params = tiny.batch(size=1), tiny.abstract().params
    with nn.intercept_methods(spy):
        jax.eval_shape(
            lambda p, x: tiny.MODEL.apply(
                {"params": p}, x, b["view_mask"], b["input_ids"], method="encode"
            ),
            params,
            jax.ShapeDtypeStruct((1, 1, 32, 32, 3), jnp.float32),
        )
    assert rates[0] == rates[1] == 0.0, "a block drops its attention and its MLP"
    np.testing.assert_allclose(rates, np.repeat(np.linspace(0, 0.1, 8), 2), atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "where"),
    [
        (SelfAttention(4, 2), (2, 3, 4), ("qkv", slice(4, 8))),
        (WindowAttention(2, 3), (1, 4, 4, 4), ("qkv", slice(4, 8))),  # with padded cells
        (BartAttention(2, 0.0), (2, 3, 4), ("k_proj", slice(None))),
    ],
    ids=["head", "window", "text"],
)
def test_the_bias_of_the_key_has_no_effect(
    layer: nn.Module, shape: tuple[int, ...], where: tuple[str, slice]
) -> None:
    x = jax.random.normal(jax.random.key(0), shape)
    params = jax.device_get(layer.init(jax.random.key(1), x)["params"])
    name, part = where

    def loss(p: Any) -> jax.Array:
        return jnp.square(jnp.asarray(layer.apply({"params": p}, x))).sum()

    grad = np.asarray(jax.grad(loss)(params)[name]["bias"])
    assert (grad[part] == 0).all()
    used = np.ones(len(grad), bool)
    used[part] = False
    assert (np.abs(grad[used]) > 1e-4).all(), "the biases of query and value are in use"
    before = layer.apply({"params": params}, x)
    bias = np.array(params[name]["bias"])
    bias[part] = 5.0
    changed = params | {name: params[name] | {"bias": bias}}
    np.testing.assert_array_equal(layer.apply({"params": changed}, x), before)


def test_time_embedding_of_odd_width_ends_in_zero() -> None:
    """Two frequencies, 1 and 0.1: cosines, sines, 0."""
    actual = time_embedding(jnp.array([0.5, 1.0]), 5)
    expected = [
        [math.cos(t), math.cos(t / 10), math.sin(t), math.sin(t / 10), 0.0] for t in (0.5, 1.0)
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_array_equal(actual[:, 4], 0.0)


def test_domain_linear_picks_the_row_of_the_domain() -> None:
    """Domain d multiplies by d and adds 10 d."""
    d = np.arange(3, dtype=np.float32)
    params = {"kernel": d[:, None, None] * np.eye(2), "bias": np.tile(10 * d[:, None], 2)}
    x = jnp.array([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])
    y = DomainLinear(2, 3).apply({"params": params}, x, jnp.array([2, 0, 1]))
    assert np.asarray(y).tolist() == [[[22, 24]], [[0, 0]], [[15, 16]]]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_is_that_of_flax(rate: float) -> None:
    x = jnp.arange(1.0, 2001.0).reshape(10, 200)
    rngs = {"dropout": jax.random.key(3)}
    ours, theirs = (
        dropout(rate, deterministic=False).apply({}, x, rngs=rngs)
        for dropout in (Dropout, nn.Dropout)
    )
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert np.mean(np.asarray(ours) == 0) == pytest.approx(rate, abs=0.05)
