"""Training for delays: committed rows come in clean at time 0, and the loss is that of the rest."""

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
from xvla_jax.actions import action_space, mean_recorded
from xvla_jax.batch import normalise
from xvla_jax.models.xvla import XVLA, Context
from xvla_jax.training.step import make_train_step

_B, _K = 2, 3
_T, _D = tiny.CONFIG.num_actions, action_space(tiny.CONFIG).width
_TRAINED = dataclasses.replace(tiny.CONFIG, rtc_max_delay=4)


class _Network:
    """Answers with zeros, and records x_t and times."""

    config = tiny.CONFIG

    def apply(self, *arguments: Any, train: bool, rngs: Any) -> jax.Array:
        self.noisy, self.t = np.asarray(arguments[4]), np.asarray(arguments[7])
        return jnp.zeros_like(arguments[4])


def _inputs() -> dict[str, Any]:
    """Two observations with two views; the second one lacks a gripper."""
    host: dict[str, Any] = tiny.batch(size=_B)
    pixels = normalise(host.pop("images")[:, :2], tiny.PROCESSOR.mean, tiny.PROCESSOR.std)
    mask = np.ones((_B, 20), bool)
    mask[1, 9] = False
    return host | {"pixels": pixels, "channel_mask": mask, "view_mask": host["view_mask"][:, :2]}


def _noise(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(*shape, _T, _D)), jnp.float32)


def test_delays_are_drawn_evenly() -> None:
    drawn = np.asarray(flow.drawn_delays(jax.random.key(0), (6000,), 5))
    counts = np.bincount(drawn, minlength=6)
    assert len(counts) == 6
    assert (abs(counts - 1000) < 150).all()  # five deviations


def test_means_are_over_the_rows_that_count() -> None:
    """By hand: rows 1 and 2 of channels 1, 10 and 2, 20; without the second channel 1.5."""
    values = jnp.asarray([[[9.0, 9.0], [1.0, 10.0], [2.0, 20.0]]])
    rows = jnp.asarray([[False, True, True]])
    assert mean_recorded(values, None, rows).tolist() == [(1.5 + 15) / 2]
    assert mean_recorded(values, jnp.asarray([[True, False]]), rows).tolist() == [1.5]


def test_the_network_sees_committed_rows_as_they_are_at_time_0() -> None:
    batch, network = _inputs(), _Network()
    noise, t = _noise(_B), jnp.asarray([0.25, 0.75])
    model: Any = network
    flow.sample_losses(model, {}, batch, noise=noise, t=t, delay=jnp.asarray([2, 0]))
    np.testing.assert_array_equal(network.t, [[0, 0] + [0.25] * (_T - 2), [0.75] * _T])
    shown = [i for i in range(_D) if i not in (9, 19)]
    np.testing.assert_array_equal(network.noisy[0, :2, shown], batch["actions"][0, :2, shown])
    expected = flow.interpolate(noise, batch["actions"], t)
    np.testing.assert_array_equal(network.noisy[0, 2:, shown], expected[0, 2:, shown])
    np.testing.assert_array_equal(network.noisy[1, :, shown], expected[1, :, shown])
    assert not network.noisy[..., [9, 19]].any()  # grippers are never shown, committed or not


def test_the_loss_is_that_of_the_other_rows() -> None:
    """A network of zeros: the terms are those of a shorter chunk."""
    batch, model = _inputs(), _Network()
    network: Any = model
    given: Any = {"noise": _noise(_B), "t": jnp.asarray([0.25, 0.0])}
    terms = flow.sample_losses(network, {}, batch, **given, delay=jnp.asarray([4, 0]))
    short = {name: value[:1] for name, value in batch.items()}
    short["actions"] = short["actions"][:, 4:]
    alone = flow.sample_losses(network, {}, short, noise=given["noise"][:1, 4:], t=given["t"][:1])
    plain = flow.sample_losses(network, {}, batch, **given)
    for name, values in terms.items():
        np.testing.assert_allclose(values[0], alone[name][0], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(values[1], plain[name][1], rtol=1e-6, err_msg=name)


def test_each_draw_has_a_delay_of_its_own() -> None:
    batch, model = _inputs(), _Network()
    network: Any = model
    noise, delay = _noise(_B, _K), np.asarray([[0, 1, 5], [3, 0, 2]], np.int32)
    t = flow.stratified_draws(jnp.float32(0.3), _B, _K)
    together = flow.sample_losses(network, {}, batch, noise=noise, t=t, delay=jnp.asarray(delay))
    assert (network.t.reshape(_B, _K, _T) == 0).sum(-1).tolist() == delay.tolist()
    each = [
        flow.sample_losses(
            network, {}, batch, noise=noise[:, k], t=t[:, k], delay=jnp.asarray(delay[:, k])
        )
        for k in range(_K)
    ]
    for name, values in together.items():
        mean = np.mean([one[name] for one in each], axis=0)
        np.testing.assert_allclose(values, mean, rtol=1e-5, err_msg=name)


def test_one_time_for_all_actions_is_the_time_of_the_sample_bit_for_bit() -> None:
    """The head alone, on made-up context; another time of one action changes what follows."""
    width, hidden = tiny.CONFIG.text.d_model, np.random.default_rng(2)
    context = Context(
        *(jnp.asarray(hidden.normal(size=(_B, 3, width)), jnp.float32) for _ in range(2))
    )
    batch, noise, params = _inputs(), _noise(_B), tiny.params()

    @jax.jit
    def head(t: Any) -> Any:
        given = context, noise, batch["proprio"], batch["domain_id"], t
        return tiny.MODEL.apply({"params": params}, *given, method="denoise")

    t = np.asarray([0.25, 0.75], np.float32)
    rows = np.tile(t[:, None], (1, _T))
    expected = np.asarray(head(t))
    np.testing.assert_array_equal(head(rows), expected)
    rows[0, 0] = 0.0
    changed = np.asarray(head(rows))
    np.testing.assert_array_equal(changed[1], expected[1])
    assert (np.abs(changed[0] - expected[0]).max(-1) > 0).all()


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_draws_the_delays_beside_what_it_drew(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise and times are those of a run without delays, which passes none."""

    def show(
        model: Any, params: Any, batch: Mapping[str, Any], *, noise: Any, t: Any, rng: Any,
        delay: Any = None,
    ) -> dict[str, jax.Array]:  # fmt: skip
        assert (delay is not None) == bool(model.config.rtc_max_delay)
        terms = {"square": (params["w"] - t) ** 2, "noise": noise[:, 0, 0]}
        return terms if delay is None else terms | {"delay": 0 * params["w"] + delay}

    monkeypatch.setattr(flow, "sample_losses", show)

    def metrics(model: XVLA) -> Any:
        recipe = dataclasses.replace(tiny.ONE_WEIGHT, model=model, accumulate=parts)
        state = jax.jit(recipe.fresh)({"w": jnp.float32(2.0)})
        run = make_train_step(recipe, tiny.PROCESSOR, seed=0)
        return run(state, sharding.global_batch(tiny.batch(), tiny.mesh(1, 1)))[1]

    plain, delayed = metrics(tiny.MODEL), metrics(XVLA(_TRAINED))
    for name in ("square", "noise"):
        assert float(plain[name]) == float(delayed[name])
    assert 0 < float(delayed["delay"]) < 4
