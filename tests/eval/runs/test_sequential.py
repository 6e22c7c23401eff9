"""The stopping rule keeps its level although one looks after every pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.runs.statistics import ALPHA, PairedStopping, log_ratio, mcnemar_exact

COMPARISONS, PAIRS = 400, 200


def run(rng: np.random.Generator, first: float, second: float) -> tuple[PairedStopping, bool]:
    """A comparison of independent policies, stopped by the rule; and whether naive looks stop."""
    rule, naive = PairedStopping(), False
    for one, other in zip(rng.random(PAIRS) < first, rng.random(PAIRS) < second, strict=True):
        rule.add(bool(one), bool(other))
        naive = naive or mcnemar_exact(rule.only_first, rule.only_second) < ALPHA
        if rule.decided:
            break
    return rule, naive


def pairs(rule: PairedStopping) -> int:
    return rule.both + rule.only_first + rule.only_second + rule.neither


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 / 2: one pair says nothing
        (2, 0, 4 / 3),
        (1, 1, 4 / 6),
        (5, 0, 32 / 6),
        (3, 2, 32 / 60),
    ],
)
def test_the_ratio(first: int, second: int, ratio: float) -> None:
    assert math.exp(log_ratio(first, second)) == pytest.approx(ratio)
    assert log_ratio(second, first) == pytest.approx(log_ratio(first, second))


def test_the_ratio_is_a_martingale_under_the_hypothesis() -> None:
    for first in range(12):
        for second in range(12):
            steps = (log_ratio(first + 1, second), log_ratio(first, second + 1))
            mean = sum(math.exp(step) for step in steps) / 2
            assert mean == pytest.approx(math.exp(log_ratio(first, second)))


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_equal_policies_are_seldom_called_different(rate: float) -> None:
    rng = np.random.default_rng(7)
    outcomes = [run(rng, rate, rate) for _ in range(COMPARISONS)]
    wrong = sum(rule.decided for rule, _ in outcomes) / COMPARISONS
    assert wrong <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / COMPARISONS)
    # The same looks at McNemar's p value, which knows nothing of looks, are wrong far more often.
    naive = sum(stopped for _, stopped in outcomes) / COMPARISONS
    assert naive > 2 * ALPHA


def test_different_policies_are_separated_before_the_end() -> None:
    rng = np.random.default_rng(7)
    outcomes = [run(rng, 0.9, 0.6)[0] for _ in range(COMPARISONS)]
    assert sum(rule.decided for rule in outcomes) > 0.95 * COMPARISONS
    assert np.median([pairs(rule) for rule in outcomes]) < PAIRS / 2
    assert all(rule.only_first > rule.only_second for rule in outcomes if rule.decided)


def test_eight_differing_pairs_of_one_kind_decide() -> None:
    rule = PairedStopping()
    for _ in range(7):
        rule.add(first=False, second=True)
    assert not rule.decided  # 128 / 8 = 16
    rule.add(first=False, second=True)
    assert rule.decided  # 256 / 9 = 28.4, above 20
    assert rule.p_value == pytest.approx(9 / 256)
    for _ in range(10):
        rule.add(first=True, second=False)
    assert rule.decided, "a decision stands"
    assert (rule.both, rule.only_first, rule.only_second, rule.neither) == (0, 10, 8, 0)


def test_it_gives_up_only_when_nothing_can_decide_any_more() -> None:
    rule = PairedStopping()
    assert rule.hopeless(7)
    assert not rule.hopeless(8)
    rule.add(first=True, second=False)
    assert not rule.hopeless(7)
    rule.add(first=True, second=True)
    rule.add(first=False, second=False)
    assert rule.hopeless(6)
