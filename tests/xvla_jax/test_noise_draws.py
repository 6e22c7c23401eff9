"""Several draws per observation: one encoding, means over draws, the same loss as one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow, sharding
from xvla_jax.actions import action_space
from xvla_jax.batch import normalise
from xvla_jax.models.soft_transformer import HeadContext
from xvla_jax.planning.flops import traced_flops
from xvla_jax.training.step import make_train_step

_B, _K = 2, 3
_CHUNK = (tiny.CONFIG.num_actions, action_space(tiny.CONFIG).width)


def _inputs() -> dict[str, Any]:
    """Two observations with two views; the second one lacks a gripper."""
    host: dict[str, Any] = tiny.batch(size=_B)
    pixels = normalise(host.pop("images")[:, :2], tiny.PROCESSOR.mean, tiny.PROCESSOR.std)
    mask = np.ones((_B, 20), bool)
    mask[1, 9] = False
    return host | {"pixels": pixels, "channel_mask": mask, "view_mask": host["view_mask"][:, :2]}


def _loss(params: Any, batch: Mapping[str, Any], noise: Any, t: Any) -> Any:
    terms = flow.sample_losses(tiny.MODEL, params, batch, noise=noise, t=t)
    return sum(term.mean() for term in terms.values()), terms


def test_times_of_an_observation_are_spread() -> None:
    times = flow.stratified_draws(jnp.float32(0.1), 2, 4)
    expected = [[0.1, 0.35, 0.6, 0.85], [0.225, 0.475, 0.725, 0.975]]
    np.testing.assert_allclose(times, expected, atol=1e-6)
    np.testing.assert_array_equal(
        flow.stratified_draws(jnp.float32(0.7), 5, 1)[:, 0],
        flow.stratified_time(jnp.float32(0.7), 5),
    )


def _all_and_one_by_one(function: Any) -> tuple[Any, Any]:
    """A function of the parameters, with all draws at once, and the mean of it over the draws."""
    batch, call = _inputs(), jax.jit(function)
    noise = np.random.default_rng(1).normal(size=(_B, _K, *_CHUNK)).astype(np.float32)
    t = np.asarray(flow.stratified_draws(jnp.float32(0.3), _B, _K))
    single = [call(tiny.params(), batch, noise[:, k], t[:, k]) for k in range(_K)]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *single)
    return call(tiny.params(), batch, noise, t), mean


def test_losses_are_means_over_the_draws() -> None:
    (_, terms), (_, mean) = _all_and_one_by_one(_loss)
    assert set(terms) == {"position_loss", "rotate6D_loss", "gripper_loss"}
    for name, values in terms.items():
        assert values.shape == (_B,)
        np.testing.assert_allclose(values, mean[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_gradients_are_means_over_the_draws() -> None:
    (grads, _), (mean, _) = _all_and_one_by_one(jax.grad(_loss, has_aux=True))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(mean))
    assert largest > 1e-2

    def compare(a: jax.Array, b: np.ndarray) -> None:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)

    jax.tree.map(compare, grads, mean)


def test_an_observation_is_encoded_once() -> None:
    batch = _inputs()
    encoder = traced_flops(_context, tiny.params(), batch)
    context: Any = jax.eval_shape(_context, tiny.params(), batch)
    head = traced_flops(_head, tiny.params(), context, batch)
    assert encoder > head / 2 > 0

    def forward(draws: int) -> int:
        noise, t = np.zeros((_B, draws, *_CHUNK), np.float32), np.zeros((_B, draws), np.float32)
        return traced_flops(_loss, tiny.params(), batch, noise, t)

    assert {k: forward(k) for k in (1, 4)} == {1: encoder + head, 4: encoder + 4 * head}


def _context(params: Any, batch: Mapping[str, Any]) -> Any:
    inputs = [batch[name] for name in ("pixels", "view_mask", "input_ids")]
    encoded: Any = tiny.MODEL.apply({"params": params}, *inputs, method="encode")
    return tiny.MODEL.apply({"params": params}, encoded, batch["domain_id"], method="prepare")


def _head(params: Any, context: HeadContext, batch: Mapping[str, Any]) -> Any:
    rows = [np.zeros((_B, *_CHUNK), np.float32), batch["proprio"], batch["domain_id"]]
    return tiny.MODEL.apply(
        {"params": params}, context, *rows, np.ones(_B, np.float32), method="denoise"
    )


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_draws_for_each_observation(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and times of the step, from losses that return them; losses by domain stay."""

    def show(
        model: Any, params: Any, batch: Mapping[str, Any], *, noise: Any, t: Any, rng: Any
    ) -> dict[str, jax.Array]:
        assert noise.shape == (8 // parts, _K, *_CHUNK)
        assert t.shape == (8 // parts, _K)
        square = (params["w"] - batch["proprio"][:, 0]) ** 2
        ordered = jnp.sort(t, axis=1)
        spread = (jnp.diff(ordered, axis=1) - 1 / _K) ** 2  # 0: the times are 1 / K apart
        return {"square": square, "spread": spread.sum(1), "noise": noise.std((1, 2, 3))}

    monkeypatch.setattr(flow, "sample_losses", show)
    recipe = dataclasses.replace(tiny.ONE_WEIGHT, accumulate=parts, noise_draws=_K)
    host = tiny.batch()
    host["proprio"][:, 0] = [0, 1, 2, 3, 4, 5, 6, 7]
    state = jax.jit(recipe.fresh)({"w": jnp.float32(2.0)})
    run = make_train_step(recipe, tiny.PROCESSOR, seed=0)
    _, metrics = run(state, sharding.global_batch(host, tiny.mesh(1, 1)))
    assert float(metrics["square"]) == pytest.approx(7.5)
    assert float(metrics["spread"]) == pytest.approx(0, abs=1e-8)
    assert float(metrics["noise"]) == pytest.approx(1, abs=0.05)
    assert float(metrics["grad_norm"]) == pytest.approx(3.0)
    assert int(metrics["domain_samples"].sum()) == 8
