"""Accumulation, moving average, partial training, steps that are skipped, metrics by part."""

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
from xvla_jax.errors import ConfigError
from xvla_jax.training.groups import split
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe
from xvla_jax.training.step import make_train_step

_CONSTANT = OptimizerConfig(schedule="constant", iters=9, learning_rate=0.1, max_grad_norm=0.0)


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample's loss is (w - its first proprio) ** 2, plus nothing drawn."""

    def losses(
        model: Any, params: Any, batch: Mapping[str, Any], *, noise: Any, t: Any, rng: Any
    ) -> dict[str, jax.Array]:
        assert noise.shape == batch["actions"].shape
        assert t.shape == batch["proprio"][:, 0].shape
        return {"square": (params["w"] - batch["proprio"][:, 0]) ** 2}

    monkeypatch.setattr(flow, "sample_losses", losses)


def _recipe(**changes: Any) -> Recipe:
    return dataclasses.replace(tiny.ONE_WEIGHT, config=_CONSTANT, **changes)


def _step(recipe: Recipe, proprio: list[float], **batch: Any) -> Any:
    rows = np.zeros((8, 20), np.float32)
    rows[:, 0] = proprio
    host = tiny.batch() | {"proprio": rows} | batch
    run = make_train_step(recipe, tiny.PROCESSOR, seed=0)
    state = jax.jit(recipe.fresh)({"w": jnp.float32(2.0)})  # buffers of its own, to be donated
    return run(state, sharding.global_batch(host, tiny.mesh(1, 1)))


@pytest.mark.usefixtures("squares")
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_parts_of_a_batch_add_up_to_all_of_it(parts: int) -> None:
    state, metrics = _step(_recipe(accumulate=parts), [0, 1, 2, 3, 4, 5, 6, 7])
    # d/dw mean (w - x)^2 = 2 (w - 3.5); mean of squares at w = 2: (4+1+0+1+4+9+16+25) / 8
    assert float(metrics["grad_norm"]) == pytest.approx(3.0)
    assert float(metrics["loss"]) == pytest.approx(7.5)
    assert float(state.params["w"]) == pytest.approx(2.1, rel=1e-6), "Adam's first step is 1"


@pytest.mark.usefixtures("squares")
def test_losses_are_reported_by_domain_whatever_the_parts() -> None:
    domain = np.array([3, 3, 3, 5, 5, 5, 5, 29], np.int32)
    for parts in (1, 4):
        _, metrics = _step(_recipe(accumulate=parts), [0, 1, 2, 3, 4, 5, 6, 7], domain_id=domain)
        loss, count = np.asarray(metrics["domain_loss"]), np.asarray(metrics["domain_samples"])
        assert {i: float(count[i]) for i in np.flatnonzero(count)} == {3: 3, 5: 4, 29: 1}
        np.testing.assert_allclose(loss[[3, 5, 29]], [5 / 3, (1 + 4 + 9 + 16) / 4, 25], rtol=1e-6)


def test_parts_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match=r"config.accumulate 3 does not divide .* 8"):
        _step(_recipe(accumulate=3), [0.0] * 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 0}, "config.accumulate is 0"),
        ({"noise_draws": 0}, "config.noise_draws is 0; it must be 1 or more"),
        ({"ema_decay": 1.0}, "config.ema_decay is 1.0; 0 <= ema_decay < 1"),
    ],
)
def test_numbers_out_of_range_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _recipe(**change)


@pytest.mark.usefixtures("squares")
def test_the_average_follows_the_weights() -> None:
    state, _ = _step(_recipe(ema_decay=0.75), [3.0] * 8)
    assert float(state.params["w"]) == pytest.approx(2.1)
    assert float(state.ema["w"]) == pytest.approx(0.75 * 2.0 + 0.25 * 2.1)
    assert _recipe().fresh({"w": jnp.ones(())}).ema == {}


@pytest.mark.usefixtures("squares")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(bad: float) -> None:
    recipe = _recipe(ema_decay=0.5)
    domain = np.array([3] * 7 + [5], np.int32)
    state, metrics = _step(recipe, [3.0] * 7 + [bad], domain_id=domain)
    before = recipe.fresh({"w": jnp.float32(2.0)})
    assert tiny.equal(
        (state.params, state.opt_state, state.ema), (before.params, before.opt_state, before.ema)
    )
    assert (int(state.step), int(state.skipped), bool(metrics["finite"])) == (1, 1, False)
    assert not np.isfinite(float(metrics["domain_loss"][5]))
    assert float(metrics["domain_loss"][3]) == pytest.approx(1.0), "the others are not drowned"
    state, metrics = _step(recipe, [3.0] * 8)
    assert (int(state.skipped), bool(metrics["finite"])) == (0, True)


def test_what_is_frozen_has_neither_moments_nor_a_change() -> None:
    config = OptimizerConfig(schedule="constant", iters=9, mode="prompts_and_heads")
    recipe = Recipe(tiny.MODEL, config, ema_decay=0.5)
    state = jax.jit(recipe.fresh)(tiny.params())
    learning, frozen = split(tiny.params(), recipe.groups)
    assert set(frozen) == {"vlm", "transformer"}
    size = sum(leaf.size for leaf in jax.tree.leaves(learning))
    mu = state.opt_state[1].mu
    assert sum(leaf.size for leaf in jax.tree.leaves(mu)) == size
    assert jax.tree.structure(state.ema) == jax.tree.structure(learning)
    run = make_train_step(recipe, tiny.PROCESSOR, seed=0)
    host = tiny.batch()
    shown = host | {"images": host["images"][:, :2]}
    after, metrics = run(state, sharding.global_batch(shown, tiny.mesh(1, 1)))
    new_learning, new_frozen = split(after.params, recipe.groups)
    assert tiny.equal(new_frozen, frozen)
    assert not tiny.equal(new_learning["transformer"], learning["transformer"])
    names = {name for name in metrics if name.startswith("grad_norm/")}
    assert names == {"grad_norm/soft_prompts", "grad_norm/action_heads"}
    parts = [float(metrics[name]) ** 2 for name in names]
    assert sum(parts) ** 0.5 == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
    assert float(metrics["learning_rate/action_heads"]) == pytest.approx(1e-4)
