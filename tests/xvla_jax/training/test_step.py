"""A train step is a function of state, batch and seed, and it reduces the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow, sharding
from xvla_jax.training.step import make_train_step


def test_a_step_is_a_function_of_state_and_batch() -> None:
    batch = tiny.batch()
    first, metrics = tiny.step(tiny.state(), batch)
    again, same = tiny.step(tiny.state(), batch)
    assert tiny.equal(metrics, same)
    assert tiny.equal(first, again)
    assert int(first.step) == 1
    placed = jax.device_put(jnp.int32(7), first.step.sharding)  # else the step is compiled again
    _, later = tiny.step(tiny.state().replace(step=placed), batch)
    assert float(later["loss"]) != float(metrics["loss"])
    terms = [float(metrics[k]) for k in ("position_loss", "rotate6D_loss", "gripper_loss")]
    assert sum(terms) == pytest.approx(float(metrics["loss"]), rel=1e-6)


def test_one_batch_is_learned() -> None:
    """Twenty steps on one batch; noise and times differ by step, so means are compared."""
    state, batch, losses = tiny.state(), tiny.batch(), []
    for _ in range(20):
        state, metrics = tiny.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3]), losses


def _chances(monkeypatch: pytest.MonkeyPatch, *, seed: int, step: int) -> dict[str, Any]:
    """Noise, times and the dropout key of a step, from a loss that returns its inputs."""

    def show(
        model: Any, params: Any, batch: Mapping[str, Any], *, noise: Any, t: Any, rng: Any
    ) -> dict[str, jax.Array]:
        drawn = jax.random.uniform(rng)
        terms = {"noise": params["w"] * noise.sum(), "t": t.sum(), "dropout": drawn}
        return {name: jnp.broadcast_to(value, t.shape) for name, value in terms.items()}

    monkeypatch.setattr(flow, "sample_losses", show)
    state = tiny.ONE_WEIGHT.fresh({"w": jnp.ones(())}).replace(step=jnp.int32(step))
    run = make_train_step(tiny.ONE_WEIGHT, tiny.PROCESSOR, seed=seed)
    state, metrics = run(state, sharding.global_batch(tiny.batch(), tiny.mesh(1, 1)))
    assert int(state.step) == step + 1
    # d loss / d w is the sum of the noise
    assert float(metrics["grad_norm"]) == pytest.approx(abs(float(metrics["noise"])), rel=1e-5)
    return {k: float(metrics[k]) for k in ("noise", "t", "dropout")}


def test_chance_is_a_function_of_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    chances = _chances(monkeypatch, seed=0, step=0)
    assert _chances(monkeypatch, seed=0, step=0) == chances
    for seed, step in ((1, 0), (0, 1)):
        other = _chances(monkeypatch, seed=seed, step=step)
        assert all(other[name] != chances[name] for name in chances)
