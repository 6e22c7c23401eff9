"""Chunks begin with their prefix: exactly where committed, nearly where guided, else unchanged."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow, inpainting
from xvla_jax.actions import ActionSpace, action_space
from xvla_jax.contract import Contract
from xvla_jax.errors import InputError
from xvla_jax.inpainting import Prefix
from xvla_jax.models.xvla import Context
from xvla_jax.plans import TimeGrid
from xvla_jax.policy import Policy, chunk

_T, _D = tiny.CONFIG.num_actions, 20
_SPACE: ActionSpace = action_space(tiny.CONFIG)


def test_weights() -> None:
    """By hand: c is 2/3 and 1/3 behind two committed rows of four; c (e^c - 1) / (e - 1)."""
    np.testing.assert_allclose(
        inpainting.weights(4, 2, 6), [1, 1, 0.367706, 0.076746, 0, 0], atol=1e-6
    )
    assert inpainting.weights(3, 3, 6).tolist() == [1, 1, 1, 0, 0, 0]
    assert not inpainting.weights(0, 0, 6).any()
    guiding = inpainting.weights(6, 0, 6)
    assert ((guiding > 0) & (guiding < 1)).all()
    assert (np.diff(guiding) < 0).all()


class _Network:
    """Gives a fixed answer, and records its inputs."""

    config = tiny.CONFIG

    def __init__(self, answer: Callable[[jax.Array], jax.Array]) -> None:
        self.answer = answer
        self.seen: list[tuple[float, np.ndarray]] = []

    def apply(self, _: Any, context: Any, *arguments: jax.Array, method: str) -> Any:
        if method == "prepare":
            return context
        noisy, _, _, t = arguments
        self.seen.append((float(t.ravel()[-1]), np.asarray(noisy)))
        self.times = np.asarray(t)
        return self.answer(noisy)


def _sample(network: Any, prefix: Prefix, noise: np.ndarray, steps: int) -> np.ndarray:
    with jax.disable_jit():
        return np.asarray(
            flow.sample(
                network, {}, Context(jnp.zeros(1), jnp.zeros(1)), jnp.zeros((1, _D)),
                jnp.zeros(1, jnp.int32), noise=jnp.asarray(noise), steps=steps, prefix=prefix,
            )
        )  # fmt: skip


def _prefix(value: float, weight: Sequence[float]) -> Prefix:
    return Prefix(jnp.full((1, _T, _D), value), jnp.asarray([weight], jnp.float32))


def test_the_network_sees_the_committed_rows_under_its_own_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(1, _T, _D)).astype(np.float32)
    network = _Network(lambda noisy: jnp.zeros_like(noisy))
    sampled = _sample(network, _prefix(0.25, [1, 1, 0, 0, 0, 0]), noise, 4)
    assert [t for t, _ in network.seen] == [1.0, 0.75, 0.5, 0.25]
    shown = [i for i in range(_D) if i not in _SPACE.hidden]
    for t, noisy in network.seen:
        expected = t * noise
        expected[:, :2] += (1 - t) * 0.25
        np.testing.assert_allclose(noisy[..., shown], expected[..., shown], atol=1e-6)
    assert (sampled[0, :2] == 0.25).all()  # the grippers too, which the network calls 0.5
    assert not sampled[0, 2:, shown].any()
    assert (sampled[0, 2:, 9] == 0.5).all()


def test_clean_rows_are_seen_as_they_are_in_every_step() -> None:
    """The network's own answer is elsewhere; grippers are never seen, and come back as given."""
    noise = np.random.default_rng(0).normal(size=(1, _T, _D)).astype(np.float32)
    network = _Network(lambda noisy: jnp.ones_like(noisy))
    prefix = _prefix(0.25, [1, 1, 0, 0, 0, 0]).replace(clean=jnp.asarray([2]))
    sampled = _sample(network, prefix, noise, 4)
    assert [t for t, _ in network.seen] == [1.0, 0.75, 0.5, 0.25]
    assert network.times.tolist() == [[0.0, 0.0] + [0.25] * (_T - 2)]
    shown = [i for i in range(_D) if i not in _SPACE.hidden]
    for t, noisy in network.seen:
        assert (noisy[0, :2, shown] == 0.25).all()
        expected = t * noise + (1 - t) * 1.0
        np.testing.assert_allclose(noisy[0, 2:, shown], expected[0, 2:, shown], atol=1e-6)
        assert not noisy[..., list(_SPACE.hidden)].any()
    assert (sampled[0, :2] == 0.25).all()
    assert (sampled[0, 2:, shown] == 1.0).all()


def test_rows_that_guide_are_drawn_less_at_the_end() -> None:
    """Weight 0.4, prefix 1, network 0: 0.4 of the way at t = 0.5, half as much at the end."""
    network = _Network(lambda noisy: jnp.zeros_like(noisy))
    noise = np.zeros((1, _T, _D), np.float32)
    sampled = _sample(network, _prefix(1.0, [0.4] * _T), noise, 10)
    np.testing.assert_allclose(sampled[..., 0], 0.2, atol=1e-6)  # t = 0.1 in the last step
    np.testing.assert_allclose(sampled[..., 9], 0.8 * 0.5 + 0.2 * 1.0, atol=1e-6)
    at_half = next(noisy for t, noisy in network.seen if abs(t - 0.5) < 1e-6)
    np.testing.assert_allclose(at_half[..., 0], 0.5 * 0.4, atol=1e-6)
    once = _sample(
        _Network(lambda noisy: jnp.zeros_like(noisy)), _prefix(1.0, [0.4] * _T), noise, 1
    )
    np.testing.assert_allclose(once[..., 0], 0.4, atol=1e-6)


def test_another_time_grid_reaches_the_inpainting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squared times: 1, 4/9, 1/9. Logits, drawn after the last step, use its time: 1/9."""
    even = TimeGrid.time
    monkeypatch.setattr(TimeGrid, "time", lambda grid, i: even(grid, i) ** 2)
    network = _Network(lambda noisy: jnp.zeros_like(noisy))
    sampled = _sample(network, _prefix(1.0, [0.4] * _T), np.zeros((1, _T, _D), np.float32), 3)
    np.testing.assert_allclose([t for t, _ in network.seen], [1, 4 / 9, 1 / 9], rtol=1e-6)
    share = 0.4 * 5 / 9  # beta t at the last time
    np.testing.assert_allclose(sampled[..., 0], share, rtol=1e-5)
    np.testing.assert_allclose(sampled[..., 9], (1 - share) * 0.5 + share, rtol=1e-5)


def test_the_share_of_the_way() -> None:
    """0.5 at t = 0.1 (beta t), (0.04 + 0.64) / 0.8 at 0.2, and all of the way at 0.5 and 1."""
    times = jnp.asarray([0.1, 0.2, 0.5, 1.0])
    prefix = Prefix(jnp.zeros((4, 1, _D)), jnp.asarray([[0.5]] * 4))
    sampled = np.asarray(inpainting._share(prefix, times)).ravel()
    np.testing.assert_allclose(sampled, [0.25, 0.425, 0.5, 0.5], rtol=1e-6)
    certain = Prefix(jnp.zeros((4, 1, _D)), jnp.ones((4, 1)))
    assert (np.asarray(inpainting._share(certain, times)) == 1.0).all()


def test_the_rest_of_the_chunk_goes_on_from_the_prefix() -> None:
    """A network that makes each row the one before it carries what is committed to the end."""
    network = _Network(lambda noisy: jnp.roll(noisy, 1, axis=1))
    noise = np.zeros((1, _T, _D), np.float32)
    sampled = _sample(network, _prefix(1.0, [1] + [0] * (_T - 1)), noise, 50)
    assert sampled[0, 0, 0] == 1.0
    assert (np.diff(sampled[0, :, 0]) <= 0).all()
    assert sampled[0, -1, 0] > 0.5


def _observation(**more: Any) -> Any:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    return {
        "images": [image], "instruction": "push", "proprio": np.full(_D, 0.1, np.float32),
        "domain_id": 0, **more,
    }  # fmt: skip


@pytest.mark.slow
def test_one_program_for_every_prefix() -> None:
    """No prefix, an empty one, and all lengths; none and empty give the same bits."""
    policy = Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {})
    plain = policy.act([_observation()], steps=3, seed=4)[0]
    count = chunk._cache_size()  # pyright: ignore[reportAttributeAccessIssue] jit's
    empty = policy.act([_observation(prefix=np.zeros((0, _D)))], steps=3, seed=4)[0]
    np.testing.assert_array_equal(empty, plain)
    rows = policy.act([_observation()], steps=3, seed=5)[0]
    assert np.abs(rows - plain).max() > 1e-3
    for length in range(1, _T + 1):
        sampled = policy.act([_observation(prefix=rows[:length])], steps=3, seed=4)[0]
        np.testing.assert_array_equal(sampled[:length], rows[:length])
    for committed in (0, 2):
        more = {"prefix": rows, "prefix_committed": committed}
        sampled = policy.act([_observation(**more)], steps=3, seed=4)[0]
        np.testing.assert_array_equal(sampled[:committed], rows[:committed])
        nearer = np.abs(sampled - rows)[committed:].mean(1) < np.abs(plain - rows)[committed:].mean(
            1
        )
        assert nearer.all()
    assert chunk._cache_size() == count  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_prefix_without_weight_is_the_ordinary_sampler_bit_for_bit() -> None:
    model, params, batch = tiny.MODEL, tiny.params(), tiny.batch(size=2)
    noise = jax.random.normal(jax.random.key(0), (2, _T, _D))
    context = model.apply(
        {"params": params}, batch["images"] / np.float32(255), batch["view_mask"],
        batch["input_ids"], method="encode",
    )  # fmt: skip
    prefix = Prefix(jnp.ones((2, _T, _D)), jnp.zeros((2, _T)))
    sample = jax.jit(functools.partial(flow.sample, model), static_argnames="steps")
    given = params, context, batch["proprio"], batch["domain_id"]
    plain = sample(*given, noise=noise, steps=5)
    np.testing.assert_array_equal(sample(*given, noise=noise, steps=5, prefix=prefix), plain)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prefix": np.zeros((_T + 1, _D))}, r"prefix has shape \(7, 20\); up to 6 rows of 20"),
        ({"prefix": np.zeros((2, 7))}, r"prefix has shape \(2, 7\)"),
        ({"prefix": np.zeros(_D)}, "prefix has shape"),
        ({"prefix": np.full((2, _D), np.nan)}, "not finite"),
        ({"prefix": np.full((2, _D), -1.0)}, r"outside 0 \.\. 1 in channels \(9, 19\)"),
        ({"prefix": np.zeros((2, _D)), "prefix_committed": 3}, r"is 3; 0 \.\. 2"),
        ({"prefix_committed": 3}, "without a prefix"),
        ({"prefix": np.zeros((2, _D)), "domain_id": 1}, r"\(0, 1, 2\) are relative"),
    ],
)
def test_a_prefix_that_cannot_be_kept(more: Any, message: str) -> None:
    contract = Contract(1, "ee6d", "interleaved", 3.0, ("front",), "zero", (0, 1, 2))
    with pytest.raises(InputError, match=f"robot: .*{message}") as raised:
        inpainting.prepare(_observation(**more), _SPACE, (_T, _D), {1: contract}, who="robot: ")
    assert raised.value.field in ("prefix", "prefix_committed")


@pytest.mark.parametrize(
    ("max_delay", "more", "message"),
    [
        (3, {"prefix_mode": "guess"}, "prefix_mode is 'guess'; allowed are inpaint, trained"),
        (0, {"prefix_mode": "trained"}, r"were not trained for delays \(config\.rtc\.max_delay\)"),
        (
            3,
            {"prefix_mode": "trained", "prefix": np.zeros((4, _D))},
            r"is 4; 0 \.\. 3, the delays that",
        ),
    ],
)
def test_a_mode_that_the_weights_do_not_know(max_delay: int, more: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"robot: .*{message}") as raised:
        inpainting.prepare(
            _observation(**more), _SPACE, (_T, _D), {}, who="robot: ", max_delay=max_delay
        )
    assert raised.value.field in ("prefix_mode", "prefix_committed")


def test_only_committed_rows_count_where_the_weights_know_delays() -> None:
    def prepared(**more: Any) -> tuple[list[float], int]:
        observation = _observation(prefix=np.ones((4, _D)), prefix_committed=2, **more)
        weight = inpainting.prepare(observation, _SPACE, (_T, _D), {}, who="", max_delay=3)[1]
        return weight.tolist(), inpainting.clean_rows(observation, weight)

    assert prepared(prefix_mode="trained") == ([1, 1, 0, 0, 0, 0], 2)
    assert prepared() == prepared(prefix_mode="inpaint")
    assert prepared()[0][2] > 0
    assert prepared()[1] == 0


@pytest.mark.slow
def test_one_program_for_every_committed_length() -> None:
    """Lengths beside one another in a batch; length 0, and inpainting, as without the training."""
    knowing = dataclasses.replace(tiny.CONFIG, rtc_max_delay=4)
    plain = Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {})
    policy = Policy(knowing, tiny.params(), tiny.PROCESSOR, {})
    rows = plain.act([_observation()], steps=3, seed=5)[0]
    two = [_observation(), _observation(prefix=rows, prefix_committed=2)]
    before = plain.act(two, steps=3, seed=4)
    np.testing.assert_array_equal(policy.act(two, steps=3, seed=4), before)
    count = chunk._cache_size()  # pyright: ignore[reportAttributeAccessIssue] jit's
    modes = [_observation(prefix=rows[:length], prefix_mode="trained") for length in range(1, 5)]
    for one in modes:
        length = len(one["prefix"])
        empty, sampled = policy.act([two[0] | {"prefix_mode": "trained"}, one], steps=3, seed=4)
        np.testing.assert_array_equal(empty, before[0])
        np.testing.assert_array_equal(sampled[:length], rows[:length])
        assert np.abs(sampled[length:] - before[0][length:]).max() > 1e-4
    assert chunk._cache_size() == count  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="observation 0: prefix_mode is 'trained'"):
        plain.act([modes[0]])


def test_prepared_rows_are_padded_to_the_chunk() -> None:
    rows, weight = inpainting.prepare(
        _observation(prefix=np.ones((2, _D))), _SPACE, (_T, _D), {}, who=""
    )
    assert rows[:, 0].tolist() == weight.tolist() == [1, 1, 0, 0, 0, 0]
    for more in ({}, {"prefix": np.zeros((0, _D))}, {"prefix": None}):
        rows, weight = inpainting.prepare(_observation(**more), _SPACE, (_T, _D), {}, who="")
        assert not rows.any()
        assert not weight.any()
