"""Drawing colour jitter; tests/xvla_jax/training/test_augment.py shows what it does to an image."""

import itertools

import numpy as np

from data.jitter import UNCHANGED, any_drawn, draw_jitter

ORDERS = list(itertools.permutations(range(3)))


def test_draws_are_those_of_earlier_versions():
    """A run that continues after an upgrade sees the images that it would have seen."""
    jitter = draw_jitter(0, "dataset", 7, 0)
    assert jitter.factors == (1.122486742633347, 1.1321702890069376, 1.1363281886960852)
    assert jitter.order == (0, 1, 2)
    jitter = draw_jitter(3, "d", 1, 2)
    assert jitter.factors == (0.8107082108581095, 0.8950078488075417, 1.1128130639789306)
    assert jitter.order == (0, 2, 1)


def test_draws_are_spread_over_range_and_orders():
    draws = [draw_jitter(0, "dataset", number, 0) for number in range(3000)]
    factors = np.array([jitter.factors for jitter in draws])
    assert 0.8 <= factors.min() < 0.801
    assert 1.199 < factors.max() < 1.2
    np.testing.assert_allclose(factors.mean(axis=0), 1.0, atol=0.01)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.07
    counts = [sum(jitter.order == order for jitter in draws) for order in ORDERS]
    assert min(counts) > 400
    assert sum(counts) == 3000


def test_draws_depend_on_seed_sample_and_view_alone():
    first = draw_jitter(0, "dataset", 7, 0)
    assert draw_jitter(0, "dataset", 7, 0) == first
    others = {draw_jitter(1, "dataset", 7, 0), draw_jitter(0, "dataset", 8, 0)}
    assert first not in others | {draw_jitter(0, "dataset", 7, 1), draw_jitter(0, "other", 7, 0)}


def test_a_mixture_jitters_when_one_of_its_rows_does():
    assert any_drawn(["none", "jitter"])
    assert not any_drawn(["none", "none"])
    assert UNCHANGED == ((1.0, 1.0, 1.0), (0, 1, 2))
