"""Intervals, sample sizes and tests against values from tables and published examples."""

from __future__ import annotations

import numpy as np
import pytest

from eval.runs.statistics import (
    episodes_to_separate,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (12, 20, 0.3866, 0.7812),
        (81, 263, 0.2553, 0.3662),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_mean_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    # near the normal interval of so many: 1.96 / sqrt(400) to either side
    assert mean_interval(list(values)) == pytest.approx(
        (values.mean() - 0.098, values.mean() + 0.098), abs=0.015
    )
    assert mean_interval([2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes in"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize(
    ("rate", "reference", "power", "episodes"),
    [
        # Textbook sample sizes of each group at a two-sided level of 5 %.
        (0.5, 0.6, 0.8, 388),
        (0.6, 0.5, 0.8, 388),
        (0.1, 0.2, 0.8, 199),
        (0.1, 0.2, 0.9, 266),
        (0.0, 1.0, 0.8, 2),
    ],
)
def test_sample_size(rate: float, reference: float, power: float, episodes: int) -> None:
    assert episodes_to_separate(rate, reference, power=power) == episodes


def test_close_rates_take_many_episodes_and_equal_ones_no_number_of_them() -> None:
    near, far = episodes_to_separate(0.97, 0.98), episodes_to_separate(0.90, 0.98)
    assert near is not None
    assert far is not None
    assert near > 20 * far
    assert episodes_to_separate(0.98, 0.98) is None


@pytest.mark.parametrize(("rate", "alpha"), [(1.2, 0.05), (-0.1, 0.05), (0.5, 0.0)])
def test_impossible_rates_are_refused(rate: float, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        episodes_to_separate(rate, 0.9, alpha=alpha)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(1, 9, 22 / 1024), (9, 1, 22 / 1024), (0, 5, 2 / 32), (5, 5, 1.0), (0, 0, 1.0), (0, 1, 1.0)],
)
def test_mcnemar(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.20, 0.0569, 0.3404),  # Newcombe 1998, table III, method 10
        ((18, 12, 2, 18), 0.20, 0.0562, 0.3290),
        ((54, 0, 0, 0), 0.0, -0.0664, 0.0664),
    ],
)
def test_paired_difference(
    counts: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    assert paired_difference(*counts) == pytest.approx((difference, low, high), abs=5e-5)


def test_swapping_the_policies_mirrors_the_difference() -> None:
    difference, low, high = paired_difference(20, 9, 3, 8)
    assert paired_difference(20, 3, 9, 8) == pytest.approx((-difference, -high, -low))


def test_no_pairs_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="all of them 0"):
        paired_difference(0, 0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 3)
