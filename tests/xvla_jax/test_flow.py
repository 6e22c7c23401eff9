"""Times and sampler, with networks whose answers are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA, Context
from xvla_jax.plans import TimeGrid

_NOISE = np.random.default_rng(0).normal(size=(2, 6, 20)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _StandIn:
    """A model whose ``denoise`` is a function of the noisy actions and the time.

    ``prepare`` hands the context on.
    """

    answer: Callable[[jax.Array, jax.Array], jax.Array]
    config: XVLAConfig = tiny.CONFIG

    def apply(
        self,
        variables: Any,
        context: Context,
        *arguments: jax.Array,
        method: str,
    ) -> Context | jax.Array:
        if method == "prepare":
            return context
        assert method == "denoise"
        actions, proprio, _, t = arguments
        assert not np.asarray(proprio)[:, [9, 19]].any()
        return self.answer(actions, t)


def _sample(answer: Callable[[jax.Array, jax.Array], jax.Array], steps: int) -> np.ndarray:
    context = Context(jnp.zeros((2, 1, 1)), jnp.zeros((2, 1, 1)))
    with jax.disable_jit():
        actions = flow.sample(
            cast(XVLA, _StandIn(answer)),
            {},
            context,
            jnp.ones((2, 20)),
            jnp.zeros(2, jnp.int32),
            noise=jnp.asarray(_NOISE),
            steps=steps,
        )
    return np.asarray(actions)


def test_stratified_times_by_hand() -> None:
    np.testing.assert_allclose(
        flow.stratified_time(jnp.float32(0.5), 4), [0.5, 0.75, 1e-5, 0.25 + 1e-5], atol=1e-6
    )
    np.testing.assert_allclose(flow.stratified_time(jnp.float32(0.1), 2), [0.1, 0.6], atol=1e-6)


@pytest.mark.parametrize("u", [0.0, 0.33, 0.999])
def test_every_stratum_gets_one_time(u: float) -> None:
    times = np.asarray(flow.stratified_time(jnp.float32(u), 16))
    assert (times >= 0).all()
    assert (times < 1).all()
    gaps = np.diff(np.sort(times))
    np.testing.assert_allclose(gaps, 1 / 16, atol=2e-5)


def test_interpolation_ends() -> None:
    noise, actions = jnp.full((3, 1, 1), 8.0), jnp.full((3, 1, 1), 4.0)
    mixed = flow.interpolate(noise, actions, jnp.array([1.0, 0.0, 0.25]))
    assert mixed.ravel().tolist() == [8.0, 4.0, 5.0]


def test_one_step_of_an_identity_gives_the_noise() -> None:
    """The network sees pure noise with the grippers hidden: logit 0, probability 0.5."""
    expected = _NOISE.copy()
    expected[..., [9, 19]] = 0.5
    np.testing.assert_array_equal(_sample(lambda x, t: x, 1), expected)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_constant_network_gives_its_constant(steps: int) -> None:
    expected = np.full_like(_NOISE, 0.7)
    expected[..., [9, 19]] = 1 / (1 + np.exp(-0.7))
    np.testing.assert_allclose(
        _sample(lambda x, t: jnp.full_like(x, 0.7), steps), expected, rtol=1e-6
    )


def test_times_fall_and_one_noise_serves_all_steps() -> None:
    """Two steps of x + t: noise + 1 at t = 1, then (noise + noise + 1) / 2 + 0.5 at t = 0.5."""
    actions = _sample(lambda x, t: x + t[:, None, None], 2)
    np.testing.assert_allclose(actions[..., :9], _NOISE[..., :9] + 1.0, rtol=1e-5, atol=1e-6)
    actions = _sample(
        lambda x, t: 2 * x, 2
    )  # 2 n, then 2 (n + 2 n) / 2 = 3 n; an Euler step differs
    np.testing.assert_allclose(actions[..., :9], 3 * _NOISE[..., :9], rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_the_time_grid_is_even_and_ends_above_zero(steps: int) -> None:
    """Bit for bit the float32 quotients; the last one is ``1.0 / steps``."""
    grid = TimeGrid.of(steps, 1)
    times = [grid.time(jnp.int32(i)).item() for i in range(steps)]
    assert times == [np.float32(steps - i) / np.float32(steps) for i in range(steps)]
    assert grid.last.item() == (1.0 / grid.count).item()


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0; at least 1"):
        _sample(lambda x, t: x, 0)
