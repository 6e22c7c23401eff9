"""Inputs that a train step gives the network: times, noise, padding; gradients that it stops."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import golden, tiny
from tests.xvla_jax.random_sites import random_sites
from xvla_jax import flow, sharding
from xvla_jax.errors import InputError
from xvla_jax.models.florence import TextEncoder
from xvla_jax.models.xvla import XVLA, Context
from xvla_jax.training.state import TrainState
from xvla_jax.training.step import make_train_step

_BATCH = 16  # over eight devices: two samples each


def _step_with(loss_terms: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, TrainState]:
    """A train step of one weight, whose loss terms are ours; and its first state."""
    monkeypatch.setattr(flow, "sample_losses", loss_terms)
    state = tiny.ONE_WEIGHT.fresh({"w": jnp.ones(())}).replace(step=jnp.int32(3))
    return make_train_step(tiny.ONE_WEIGHT, tiny.PROCESSOR, seed=5), state


def _show(
    model: Any, params: Any, batch: Mapping[str, Any], *, noise: Any, t: Any, rng: Any
) -> dict[str, jax.Array]:
    """Loss terms that show each sample's time, noisy actions and dropout mask."""
    noisy = flow.interpolate(noise, batch["actions"], t)
    kept = jax.random.bernoulli(rng, 0.9, noise.shape)
    shown = {"time": t, "noisy": noisy.sum((1, 2)), "kept": (kept * noisy).sum((1, 2))}
    # a metric is a mean over the samples, so each term says the same for all of them
    return {
        f"{k}/{i}": jnp.broadcast_to(params["w"] * v[i], t.shape)
        for k, v in shown.items()
        for i in range(len(t))
    }


def _chances(data: int, fsdp: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Per sample of the batch: time, noisy actions, and their sum under a dropout mask."""
    step, state = _step_with(_show, monkeypatch)
    batch = sharding.global_batch(tiny.batch(size=_BATCH), tiny.mesh(data, fsdp))
    _, metrics = step(state, batch)
    return {
        k: np.array([metrics[f"{k}/{i}"] for i in range(_BATCH)]) for k in ("time", "noisy", "kept")
    }


def test_times_are_stratified_over_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One uniform for all: sample i has it plus i / 16, on whatever device it is."""
    one = _chances(1, 1, monkeypatch)
    shifted = (one["time"] - np.arange(_BATCH) / _BATCH) % 1.0
    np.testing.assert_allclose(shifted, shifted[0], atol=2e-5)  # the wrap is at 1 - 1e-5
    assert len(set(np.floor(one["time"] * _BATCH))) == _BATCH, "one sample in each sixteenth"
    assert len(np.unique(one["noisy"])) == len(np.unique(one["kept"])) == _BATCH
    for data, fsdp in ((8, 1), (2, 4)):
        for name, values in _chances(data, fsdp, monkeypatch).items():
            np.testing.assert_allclose(values, one[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_step_draws_one_noise_and_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(model: Any, params: Any, batch: Any, *, noise: Any, t: Any, rng: Any) -> Any:
        return {"loss": jnp.broadcast_to(params["w"] * (noise.sum() + t.sum()), t.shape)}

    step, state = _step_with(plain, monkeypatch)
    masks, draws = random_sites(step, state, tiny.batch(size=_BATCH))
    assert masks == set()
    assert draws == Counter({(_BATCH, tiny.CONFIG.num_actions, 20): 1, (): 1})


@pytest.mark.parametrize("padding", [1, 4])
def test_the_padding_row_is_read_but_takes_no_gradient(padding: int) -> None:
    """Row 3 is met twice, rows 1 and 4 once each; the gradient of a sum counts them."""
    text = dataclasses.replace(tiny.CONFIG.text, vocab_size=6, pad_token_id=padding)
    table = np.arange(6 * text.d_model, dtype=np.float32).reshape(6, text.d_model)
    positions = np.zeros((text.max_position_embeddings + 2, text.d_model), np.float32)
    ids = jnp.array([[3, 4, 3, 1]])

    def embed(tokens: Any) -> jax.Array:
        params = {"token_embedding": tokens, "position_embedding": positions}
        return jnp.asarray(TextEncoder(text).apply({"params": params}, ids, method="embed"))

    np.testing.assert_array_equal(embed(table), table[np.asarray(ids)])
    grad = np.asarray(jax.grad(lambda tokens: embed(tokens).sum())(table))
    counts = np.array([0, 1, 0, 2, 1, 0])
    counts[padding] = 0
    np.testing.assert_array_equal(grad, np.tile(counts[:, None], text.d_model))


@dataclasses.dataclass
class _Spy:
    """A model of action space auto, 7 of 11 channels, that keeps what it was given.

    ``prepare`` hands the context on.
    """

    prediction: jax.Array
    config: Any = dataclasses.field(default_factory=lambda: golden.load("auto").config)
    seen: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def apply(self, variables: Any, *inputs: Any, method: str = "__call__", **_: Any) -> Any:
        if method == "prepare":
            return inputs[0]
        noisy, proprio = inputs[1:3] if method == "denoise" else inputs[3:5]
        self.seen = {"noisy": np.asarray(noisy), "proprio": np.asarray(proprio)}
        return self.prediction


_CHUNK, _REAL, _WIDTH = (2, 3), 7, 11


def _auto_loss(prediction: jax.Array, proprio: jax.Array, spy: _Spy | None = None) -> jax.Array:
    """Loss of a prediction where the target is 0.5, the noise 2 and the time 1/4."""
    model = spy or _Spy(prediction)
    batch = {"actions": jnp.full((*_CHUNK, _REAL), 0.5), "proprio": proprio}
    batch |= dict.fromkeys(("pixels", "view_mask", "input_ids", "domain_id"), jnp.zeros(2))
    noise, t = jnp.full((*_CHUNK, _REAL), 2.0), jnp.full(2, 0.25)
    terms = flow.loss_terms(cast(XVLA, model), {}, batch, noise=noise, t=t)
    assert set(terms) == {"joints_loss"}
    return terms["joints_loss"]


def test_auto_trains_on_the_real_channels_alone() -> None:
    """100 times the mean square of 1 - 0.5 over 7 channels, whatever is predicted beyond."""
    proprio = jnp.ones((2, _WIDTH))
    prediction = jnp.ones((*_CHUNK, _WIDTH))
    spy = _Spy(prediction)
    assert float(_auto_loss(prediction, proprio, spy)) == pytest.approx(25.0)
    noisy = spy.seen["noisy"]
    assert noisy.shape == (*_CHUNK, _WIDTH)
    np.testing.assert_allclose(noisy[..., :_REAL], 0.25 * 2 + 0.75 * 0.5)
    assert not noisy[..., _REAL:].any(), "no noise where there is no action"
    np.testing.assert_array_equal(spy.seen["proprio"], proprio)  # of full width: untouched
    beyond = prediction.at[..., _REAL:].set(1e6)
    assert float(_auto_loss(beyond, proprio)) == pytest.approx(25.0)
    grad = np.asarray(jax.grad(_auto_loss)(prediction, proprio))
    assert (grad[..., :_REAL] > 0).all()
    assert (grad[..., _REAL:] == 0).all()


def test_auto_pads_a_proprio_of_real_width_and_refuses_any_other() -> None:
    prediction = jnp.ones((*_CHUNK, _WIDTH))
    spy = _Spy(prediction)
    _auto_loss(prediction, jnp.ones((2, _REAL)), spy)
    assert spy.seen["proprio"].tolist() == [[1.0] * _REAL + [0.0] * (_WIDTH - _REAL)] * 2
    with pytest.raises(InputError, match="9 channels, expected 7 or 11"):
        _auto_loss(prediction, jnp.ones((2, 9)))


def test_auto_samples_noise_in_all_channels_and_cuts_at_the_end() -> None:
    spy = _Spy(jnp.broadcast_to(jnp.arange(11.0), (*_CHUNK, _WIDTH)))
    noise = jnp.full((*_CHUNK, _WIDTH), 2.0)
    context = Context(jnp.zeros((2, 1, 1)), jnp.zeros((2, 1, 1)))
    state = (jnp.ones((2, _WIDTH)), jnp.zeros(2, jnp.int32))
    with jax.disable_jit():
        actions = flow.sample(cast(XVLA, spy), {}, context, *state, noise=noise, steps=1)
    np.testing.assert_array_equal(spy.seen["noisy"], noise)
    assert actions.shape == (*_CHUNK, _REAL)
    np.testing.assert_array_equal(actions[0, 0], np.arange(7.0))
