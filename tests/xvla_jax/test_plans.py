"""Sampler plans: what a step keeps of the context, when samples stop, and what changes no bit."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow
from xvla_jax.errors import ConfigError
from xvla_jax.models.inference import inference_params
from xvla_jax.models.xvla import XVLA, Context
from xvla_jax.plans import DEFAULT, EXACT, PLANS, Form, TimeGrid, named_plan

_B, _T, _D = 3, tiny.CONFIG.num_actions, 20
_MODEL = XVLA(tiny.CONFIG, unroll=True)
_WIDTH = tiny.CONFIG.text.d_model


@functools.cache
def _params() -> Any:
    """The head's alone: nothing here encodes."""
    return {"transformer": inference_params(tiny.params())["transformer"]}


def _inputs(seed: int = 0) -> tuple[Context, jax.Array, jax.Array]:
    """Context, proprio and noise of three observations."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, 1, shape), jnp.float32)

    return Context(draw(_B, 7, _WIDTH), draw(_B, 5, _WIDTH)), draw(_B, _D), draw(_B, _T, _D)


_DOMAINS = jnp.asarray([0, 3, 29], jnp.int32)
_sample = jax.jit(flow.sample, static_argnums=0, static_argnames=("steps", "refresh"))


def _run(
    steps: int | jax.Array,
    refresh: tuple[int, ...] | None = None,
    tolerance: list[float] | None = None,
) -> np.ndarray:
    context, proprio, noise = _inputs()
    limits = None if tolerance is None else jnp.asarray(tolerance, jnp.float32)
    counts = {"steps": steps} if isinstance(steps, int) else {}
    sample = _sample if counts else functools.partial(_dynamic, steps=steps)
    return np.asarray(
        sample(
            _MODEL,
            _params(),
            context,
            proprio,
            _DOMAINS,
            noise=noise,
            refresh=refresh,
            tolerance=limits,
            **counts,
        )
    )


_dynamic = jax.jit(flow.sample, static_argnums=0, static_argnames="refresh")


def test_rows_are_named_and_begin_with_the_context() -> None:
    assert [name for name, row in PLANS.items() if row.name != name] == []
    assert PLANS["exact10"] is DEFAULT
    assert DEFAULT.form == EXACT == Form()
    for row in PLANS.values():
        assert row.steps >= 1
        if row.refresh is not None:
            assert row.refresh[0] == 0
            assert list(row.refresh) == sorted(set(row.refresh))
            assert row.refresh[-1] < row.steps
    with pytest.raises(ConfigError, match=r"plan is 'frozen99'; allowed are exact10, .*frozen3"):
        named_plan("frozen99")


def test_samples_of_one_grid_have_their_own_last_times() -> None:
    grid = TimeGrid.of(jnp.asarray([1, 4], jnp.int32), 2)
    np.testing.assert_allclose(grid.last, [1.0, 0.25])
    assert grid.runs(jnp.int32(1)).tolist() == [False, True]
    assert int(grid.most) == 4


def test_a_context_that_each_step_computes_is_the_exact_sampler() -> None:
    np.testing.assert_allclose(_run(2, (0, 1)), _run(2), atol=2e-6)


def test_kept_tokens_are_those_of_the_step_that_computed_them() -> None:
    """Two steps by hand, with blocks that project all tokens and throw the context's away."""
    context, proprio, noise = _inputs()

    def by_hand(model: XVLA) -> jax.Array:
        head, space = model.transformer, flow.action_space(tiny.CONFIG)
        prepared: Any = model.prepare(context, _DOMAINS)

        def tokens(actions: jax.Array, t: float) -> jax.Array:
            times = jnp.full(_B, t)
            state, noisy = space.preprocess(proprio, flow.interpolate(noise, actions, times))
            return head._embed(noisy, state, _DOMAINS, times)

        x, seen = jnp.concatenate([tokens(jnp.zeros_like(noise), 1.0), prepared.tokens], 1), []
        for block in head.blocks:
            seen.append(block.project(x[:, _T:]))
            x, _ = block(x, False)
        x = tokens(head._decode(x[:, :_T], _DOMAINS), 0.5)
        for block, known in zip(head.blocks, seen, strict=True):
            padded = jnp.concatenate([x, jnp.zeros_like(prepared.tokens)], 1)
            x, _ = block(padded, False, known, _T)
        return space.postprocess(head._decode(x, _DOMAINS))

    expected = jax.jit(lambda params: _MODEL.apply({"params": params}, method=by_hand))(_params())
    frozen = _run(2, (0,))
    np.testing.assert_allclose(frozen, expected, atol=2e-6)
    assert np.abs(frozen - _run(2)).max() > 1e-5  # the context does change


def test_one_number_of_steps_or_one_each_is_the_same_plan() -> None:
    """And a refresh that no sample reaches leaves no trace."""
    each = _run(jnp.full(_B, 2, jnp.int32), (0,))
    np.testing.assert_allclose(each, _run(2, (0,)), atol=1e-6)
    np.testing.assert_array_equal(_run(2, (0, 3)), _run(2, (0,)))


def test_a_kept_context_needs_blocks_apart() -> None:
    with pytest.raises(ValueError, match="needs unroll=True"):
        flow.sample(
            tiny.MODEL,
            {"transformer": tiny.params()["transformer"]},
            *_inputs()[:2],
            _DOMAINS,
            noise=_inputs()[2],
            steps=2,
            refresh=(0,),
        )


@pytest.mark.parametrize("refresh", [None, (0,)])
def test_tolerance_zero_changes_no_bit(refresh: tuple[int, ...] | None) -> None:
    np.testing.assert_array_equal(_run(4, refresh, [0.0] * _B), _run(4, refresh))


def test_a_sample_stops_by_itself() -> None:
    """With an endless tolerance after its second step; its neighbours continue."""
    each = _run(4, None, [0.0, np.inf, 0.0])
    np.testing.assert_array_equal(each[[0, 2]], _run(4)[[0, 2]])
    stopped = flow.action_space(tiny.CONFIG).postprocess(_clean(2, of=4))
    np.testing.assert_allclose(each[1], stopped[1], atol=2e-6)


def test_movement_is_that_of_channels_the_network_sees_again() -> None:
    """Logits move on: hidden from the network, they cannot move anything else."""
    channels = [i for i in range(_D) if i not in (9, 19)]
    two, three = (np.asarray(_clean(steps, of=8)) for steps in (2, 3))
    moved = np.abs(three - two)[1]
    assert moved[:, [9, 19]].max() > 0
    largest = float(moved[:, channels].max())
    for tolerance, stops in ((largest * 1.01, True), (largest * 0.99, False)):
        stopped = _run(8, None, [0.0, tolerance, 0.0])[1]
        assert np.array_equal(stopped, _run(8)[1]) != stops


@functools.partial(jax.jit, static_argnames=("steps", "of"))
def _clean(steps: int, *, of: int) -> jax.Array:
    """Estimates after the first steps of a grid."""
    context, proprio, noise = _inputs()
    actions, space = jnp.zeros_like(noise), flow.action_space(tiny.CONFIG)
    for i in range(steps):
        times = jnp.full(_B, (of - i) / of)
        state, noisy = space.preprocess(proprio, flow.interpolate(noise, actions, times))
        inputs = (context, noisy, state, _DOMAINS, times)
        answer: Any = _MODEL.apply({"params": _params()}, *inputs, method="denoise")
        actions = answer
    return actions
