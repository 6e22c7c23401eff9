"""Schedules by hand, groups, and what waiting parameters take part in."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xvla_jax.errors import ConfigError
from xvla_jax.training.groups import xvla_groups
from xvla_jax.training.optimizer import (
    OptimizerConfig,
    clip_by_global_norm,
    learning_rates,
    make_optimizer,
    scale_by_adam,
)

_RUN = OptimizerConfig(
    schedule="xvla_cosine",
    iters=50_000,
    learning_rate=1e-4,
    learning_coef=0.1,
    freeze_steps=1000,
    warmup_steps=2000,
    min_lr_ratio=0.1,
)
_GROUPS = xvla_groups(0.1)
# Large enough that clipping by 1 and Adam's epsilon show in no digit.
_PARAMS: dict[str, Any] = {
    "vlm": {"w": np.full(2, 2.0, np.float32)},
    "transformer": {
        "soft_prompts": np.full(2, 2.0, np.float32),
        "action_decoder": {"kernel": np.full(2, 2.0, np.float32)},
        "blocks": {"w": np.full(2, 2.0, np.float32)},
    },
}


@pytest.mark.parametrize(
    ("schedule", "group", "table"),
    [
        (
            "xvla_cosine",
            "transformer_core",
            {
                999: 0,
                1000: 0,
                1001: 5e-8,
                2000: 5e-5,
                2999: 9.995e-5,
                3000: 1e-4,
                26_500: 5.5e-5,
                49_999: 1e-5,
            },
        ),
        ("xvla_cosine", "vlm", {999: 0, 2000: 5e-6, 3000: 1e-5, 26_500: 5.5e-6}),
        ("xvla_cosine", "action_heads", {0: 1e-4, 999: 1e-4, 1000: 0, 2000: 5e-5}),
        ("xvla_cosine", "soft_prompts", {0: 1e-5, 999: 1e-5, 1000: 0, 3000: 1e-5}),
        ("xvla_release", "transformer_core", {0: 0, 999: 0, 1000: 1e-4, 49_999: 1e-4}),
        ("xvla_release", "vlm", {999: 0, 1000: 1e-5}),
        ("xvla_release", "action_heads", {0: 1e-4, 1000: 1e-4}),
        ("xvla_release", "soft_prompts", {0: 1e-5, 1000: 1e-5}),
        ("xvla_paper", "transformer_core", {999: 0, 1000: 0, 2000: 5e-5, 3000: 1e-4, 40_000: 1e-4}),
        ("xvla_paper", "vlm", {999: 0, 2000: 5e-6, 3000: 1e-5}),
        ("xvla_paper", "action_heads", {0: 1e-4, 1000: 1e-4, 2000: 1e-4}),
        ("xvla_paper", "soft_prompts", {0: 1e-5, 2000: 1e-5}),
        ("xvla_early", "transformer_core", {999: 0, 2000: 5e-5, 3000: 1e-4, 4000: 9.9005e-5}),
        ("xvla_early", "action_heads", {0: 1e-4, 1000: 9.9005e-5}),
        ("constant", "vlm", {0: 1e-5, 40_000: 1e-5}),
        # Step 0 moves at once; the cosine runs from 2000 to 50,000, half-way at 26,000.
        ("warmup_cosine", "action_heads", {0: 5e-8, 999: 5e-5, 2000: 1e-4, 26_000: 5.5e-5}),
        ("warmup_cosine", "transformer_core", {0: 0, 999: 0, 1000: 5.005e-5, 50_000: 1e-5}),
        ("warmup_cosine", "soft_prompts", {999: 5e-6, 2000: 1e-5}),
    ],
)
def test_schedules(schedule: str, group: str, table: dict[int, float]) -> None:
    config = dataclasses.replace(_RUN, schedule=schedule)
    rates = {step: float(learning_rates(step, config, _GROUPS)[group]) for step in table}
    # the last digits of 49,999 lie between 1e-5 and its neighbour
    assert rates == pytest.approx(table, rel=2e-4, abs=1e-12)


@pytest.mark.parametrize(("flag", "schedule"), [(True, "xvla_cosine"), (False, "xvla_release")])
def test_the_released_flag_chooses_between_two_schedules(flag: bool, schedule: str) -> None:
    flags = dataclasses.replace(_RUN, schedule="xvla_flags", use_cosine_decay=flag)
    named = dataclasses.replace(_RUN, schedule=schedule)
    for step in (0, 999, 1500, 20_000):
        assert learning_rates(step, flags, _GROUPS) == learning_rates(step, named, _GROUPS)


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    config = dataclasses.replace(_RUN, schedule="linear")
    with pytest.raises(
        ConfigError, match="schedule is 'linear'; known are xvla_release, xvla_cosine"
    ):
        learning_rates(0, config, _GROUPS)


def test_every_uncovered_parameter_is_named() -> None:
    tree = _PARAMS | {"critic": {"a": jnp.ones(1), "b": jnp.ones(1)}}
    with pytest.raises(
        ConfigError, match="covers 2 parameters: critic/a, critic/b; the groups are"
    ):
        make_optimizer(_RUN, _GROUPS).init(tree)


def _step(config: OptimizerConfig, grads: Any, steps: int = 1) -> tuple[Any, Any]:
    optimizer = make_optimizer(config, _GROUPS)
    params, state = _PARAMS, optimizer.init(_PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(
            grads, state, params, norm=optax.tree.norm(grads), finite=jnp.array(True)
        )
        params = optax.apply_updates(params, updates)
    return params, state


def test_waiting_groups_stand_still_but_count() -> None:
    """Gradients of 3, 3 that wait and 4, 4 of the head: the norm is sqrt(9 + 9 + 16 + 16)."""
    grads = jax.tree.map(jnp.zeros_like, _PARAMS)
    grads["vlm"]["w"] += 3.0
    grads["transformer"]["action_decoder"]["kernel"] += 4.0
    config = dataclasses.replace(_RUN, schedule="xvla_release", freeze_steps=1, weight_decay=0.5)
    params, state = _step(config, grads)
    np.testing.assert_array_equal(params["vlm"]["w"], 2.0)
    np.testing.assert_array_equal(params["transformer"]["blocks"]["w"], 2.0)
    # Adam's first step is the sign of the gradient: 1, and 0.5 * 2 of decay
    np.testing.assert_allclose(
        params["transformer"]["action_decoder"]["kernel"], 2 - 1e-4 * (1 + 0.5 * 2), rtol=1e-7
    )
    mu = state[1].mu
    np.testing.assert_allclose(mu["vlm"]["w"], 0.1 * 3 / 50**0.5, rtol=1e-6)
    kernel = mu["transformer"]["action_decoder"]["kernel"]
    np.testing.assert_allclose(kernel, 0.1 * 4 / 50**0.5, rtol=1e-6)
    # after the freeze the core has only decay: 2 * (1 - 1e-4 * 0.5)
    params, _ = _step(config, grads, steps=2)
    np.testing.assert_allclose(params["transformer"]["blocks"]["w"], 2 - 1e-4, rtol=1e-7)
    np.testing.assert_allclose(params["vlm"]["w"], 2 - 1e-5 * 2, rtol=1e-7)


@pytest.mark.parametrize(("limit", "clipped"), [(0.0, 0.4), (2.0, 0.1), (100.0, 0.4)])
def test_clipping(limit: float, clipped: float) -> None:
    """Eight gradients of 4 have norm 8 * sqrt 2; of the half-norm limit a quarter is left."""
    grads = jax.tree.map(lambda p: jnp.full_like(p, 2**0.5 * 2), _PARAMS)
    _, state = _step(dataclasses.replace(_RUN, max_grad_norm=limit), grads)
    np.testing.assert_allclose(state[1].mu["vlm"]["w"], clipped * 2**-0.5, rtol=1e-6)


def test_a_step_that_is_not_finite_leaves_the_state_alone() -> None:
    optimizer = make_optimizer(_RUN, _GROUPS)
    grads = jax.tree.map(jnp.ones_like, _PARAMS)
    _, before = optimizer.update(
        grads, optimizer.init(_PARAMS), _PARAMS, norm=optax.tree.norm(grads), finite=jnp.array(True)
    )
    broken = jax.tree.map(lambda g: g * jnp.nan, grads)
    _, after = optimizer.update(
        broken, before, _PARAMS, norm=jnp.array(jnp.nan), finite=jnp.array(False)
    )
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_clipping_and_adam_give_the_numbers_of_optax() -> None:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), _PARAMS)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.95, 1e-8))
    ours = optax.chain(clip_by_global_norm(1.0), scale_by_adam(0.9, 0.95, 1e-8))
    state, expected_state = ours.init(params), theirs.init(params)
    for scale in (0.01, 10.0, 3.0):  # below and above the norm that is clipped
        grads = jax.tree.map(lambda x: scale * x, params)  # noqa: B023
        changes, state = ours.update(
            grads, state, params, norm=optax.tree.norm(grads), finite=jnp.array(True)
        )
        expected, expected_state = theirs.update(grads, expected_state, params)
        for a, b in zip(jax.tree.leaves(changes), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6)
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)


def test_a_donated_state_is_updated_where_it_lies() -> None:
    """A copy of moments or gradients would take as much temporary memory as all parameters."""
    size = 1 << 20
    params = {"transformer": {"blocks": {"w": jnp.zeros((size,))}}}
    optimizer = make_optimizer(_RUN, _GROUPS)

    def step(params: Any, state: Any, grads: Any, finite: Any) -> Any:
        updates, state = optimizer.update(
            grads, state, params, norm=optax.tree.norm(grads), finite=finite
        )
        new = jax.tree.map(lambda p, u: jnp.where(finite, p + u, p), params, updates)
        return new, state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(
        params, optimizer.init(params), params, jnp.array(True)
    )
    memory = compiled.compile().memory_analysis()
    assert memory is not None
    # one set of squares for the norm of the gradients, which XLA on CPUs writes down
    assert memory.temp_size_in_bytes < 1.1 * 4 * size
