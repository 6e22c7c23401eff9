"""Blaker's interval: its coverage by enumeration, and against the definition; power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.runs.binomial import success_interval
from eval.runs.statistics import episodes_to_separate, power_to_separate, wilson_interval


def coverage(bounds: list[tuple[float, float]], rates: np.ndarray) -> np.ndarray:
    """Probability that the interval of the outcome contains the rate, for each rate."""
    low, high = np.array(bounds).T
    probabilities = stats.binom.pmf(np.arange(len(bounds)), len(bounds) - 1, rates[:, None])
    inside = (low <= rates[:, None]) & (rates[:, None] <= high)
    return (probabilities * inside).sum(axis=1)


@pytest.mark.parametrize("trials", [1, 2, 10, 20, 50, 200])
def test_the_rate_is_inside_in_at_least_95_percent_of_evaluations(trials: int) -> None:
    bounds = [success_interval(k, trials) for k in range(trials + 1)]
    # the coverage is smallest just outside of a bound
    ends = np.array(bounds).ravel()
    rates = np.concatenate([np.linspace(0, 1, 2001), ends - 1e-9, ends + 1e-9]).clip(0, 1)
    covered = coverage(bounds, rates)
    assert covered.min() >= 0.95 - 1e-6
    if trials >= 50:
        middle = covered[(rates > 0.11) & (rates < 0.89)]
        assert middle.max() < 0.98
    # what it is there for
    wilson = [wilson_interval(k, trials) for k in range(trials + 1)]
    beside = np.array(wilson).ravel()[:, None] + [-1e-9, 1e-9]
    assert coverage(wilson, beside.ravel().clip(0, 1)).min() < 0.87


@pytest.mark.parametrize(("successes", "trials"), [(1, 10), (5, 10), (19, 20), (13, 20), (48, 50)])
def test_against_the_definition(successes: int, trials: int) -> None:
    """The smallest and largest rate whose outcomes are not all more usual than this one."""
    rates = np.linspace(0, 1, 20001)[1:-1]
    outcomes = np.arange(trials + 1)
    up = stats.binom.sf(outcomes - 1, trials, rates[:, None])
    down = stats.binom.cdf(outcomes, trials, rates[:, None])
    unusual = np.minimum(up, down)  # Blaker's measure: the smaller tail
    as_unusual = unusual <= unusual[:, [successes]] * (1 + 1e-9)
    kept = rates[
        (stats.binom.pmf(outcomes, trials, rates[:, None]) * as_unusual).sum(axis=1) > 0.05
    ]
    assert success_interval(successes, trials) == pytest.approx(
        (kept.min(), kept.max()), abs=1.01e-4
    )


def test_ends_order_and_mirror() -> None:
    assert success_interval(0, 0) == (0.0, 1.0)
    assert success_interval(0, 20)[0] == 0.0
    assert success_interval(20, 20)[1] == 1.0
    low, high = success_interval(3, 20)
    assert success_interval(17, 20) == pytest.approx((1 - high, 1 - low))
    lows = [success_interval(k, 30)[0] for k in range(31)]
    assert lows == sorted(lows)
    exact = stats.binomtest(17, 20).proportion_ci(method="exact")
    assert exact.low <= 1 - high
    assert 1 - low <= exact.high


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes in"):
        success_interval(successes, trials)


def test_power_is_that_of_the_sample_size() -> None:
    assert power_to_separate(388, 0.5, 0.6) == pytest.approx(0.8, abs=2e-3)
    assert power_to_separate(50, 0.8, 0.9) == pytest.approx(0.286, abs=1e-3)
    needed = episodes_to_separate(0.7, 0.85, power=0.9)
    assert needed is not None
    assert power_to_separate(needed, 0.7, 0.85) >= 0.9 > power_to_separate(needed - 1, 0.7, 0.85)
    assert power_to_separate(5, 0.0, 1.0) == 1.0
    with pytest.raises(ValueError, match="0 episodes"):
        power_to_separate(0, 0.5, 0.6)


def test_power_by_simulation() -> None:
    draws = np.random.default_rng(0).binomial(200, [[0.8], [0.9]], (2, 20_000))
    first, second = draws / 200
    pooled = (first + second) / 2
    z = np.abs(first - second) / np.sqrt(2 * pooled * (1 - pooled) / 200)
    assert power_to_separate(200, 0.8, 0.9) == pytest.approx((z > 1.96).mean(), abs=0.02)
