"""Confidence of a success rate, of the difference of two, and a rule to stop a comparison early.

`PairedStopping` is a mixture sequential probability ratio test. Pairs that both policies solved, or
neither, do not say which is better. If the policies are equal, each of the others is a fair coin.
The alternative is a mixture of all coins, p ~ Beta(1, 1), which gives w wins of the first policy
among n differing pairs the probability w! (n - w)! / (n + 1)!. The ratio

    L_n = 2^n w! (n - w)! / (n + 1)!

is a martingale with mean 1 if the policies are equal, so the probability that it ever reaches
1 / alpha is at most alpha (Ville 1939; Robbins 1970). The comparison may therefore be checked after
each pair and stopped as soon as it does; 1 / max L_n is a p value that is valid at any stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Sequence

import numpy as np

ALPHA = 0.05  # level of a comparison that may stop early
# Half width of a central 95 % interval of the normal distribution, in standard deviations.
Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a success rate (E. B. Wilson, 1927); (0, 1) without trials.

    Raises:
        ValueError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    shrink = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    spread = z / shrink * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # The ends are exact where rounding would leave them beside 0 and 1.
    low = 0.0 if successes == 0 else max(0.0, centre - spread)
    high = 1.0 if successes == trials else min(1.0, centre + spread)
    return low, high


def mean_interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of a mean (Efron, 1979); the same values give the same.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    sample = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(sample), (resamples, len(sample)))
    # [resamples, n] -> a mean for each resample
    low, high = np.percentile(sample[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def episodes_to_separate(
    rate: float, reference: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Episodes that each of two policies needs for a two-sided test to separate their rates.

    The test is the two-proportion z test with pooled variance, without continuity correction
    (Fleiss, Levin and Paik 2003, section 4.2). None where the rates are equal.

    Args:
        rate: true success rate of one policy.
        reference: that of the other, tried in as many episodes.
        alpha: probability of a difference being claimed where there is none.
        power: probability of detecting this difference.

    Raises:
        ValueError: a rate outside [0, 1], or alpha or power outside (0, 1).
    """
    if not (0 <= rate <= 1 and 0 <= reference <= 1 and 0 < alpha < 1 and 0 < power < 1):
        raise ValueError(
            f"rates {rate} and {reference} must be in [0, 1], alpha {alpha} and power {power} "
            "in (0, 1)"
        )
    if rate == reference:
        return None
    under_null, under_truth = _spreads(rate, reference)
    normal = NormalDist()
    spread = normal.inv_cdf(1 - alpha / 2) * under_null + normal.inv_cdf(power) * under_truth
    return math.ceil((spread / (rate - reference)) ** 2)


def power_to_separate(
    episodes: int, rate: float, reference: float, *, alpha: float = 0.05
) -> float:
    """Probability that a test of two policies with this many episodes each separates their rates.

    The test is that of `episodes_to_separate`, in the same approximation.

    Args:
        episodes: of each policy.
        rate: true success rate of one policy.
        reference: that of the other.
        alpha: probability of a difference being claimed where there is none.

    Raises:
        ValueError: no episodes, or a rate outside [0, 1].
    """
    if episodes < 1 or not (0 <= rate <= 1 and 0 <= reference <= 1):
        raise ValueError(f"{episodes} episodes, rates {rate} and {reference}: 1 or more, in [0, 1]")
    under_null, under_truth = _spreads(rate, reference)
    normal = NormalDist()
    reach = abs(rate - reference) * math.sqrt(episodes)
    beyond = reach - normal.inv_cdf(1 - alpha / 2) * under_null
    if under_truth == 0:  # 0 against 1: without any spread
        return float(beyond > 0)
    return normal.cdf(beyond / under_truth)


def _spreads(rate: float, reference: float) -> tuple[float, float]:
    """Deviation of the difference of two rates from single episodes: if equal, and as they are."""
    mean = (rate + reference) / 2
    return (
        math.sqrt(2 * mean * (1 - mean)),
        math.sqrt(rate * (1 - rate) + reference * (1 - reference)),
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p value of McNemar's exact test.

    Of the pairs in which one succeeded and the other failed, either is as likely to be the one
    that succeeded, if the policies are equally good.

    Args:
        only_first: pairs that only the first policy solved.
        only_second: pairs that only the second policy solved.

    Raises:
        ValueError: a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts {only_first} and {only_second} cannot be negative")
    differing = only_first + only_second
    tail = sum(math.comb(differing, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**differing)


def paired_difference(
    both: int, only_first: int, only_second: int, neither: int
) -> tuple[float, float, float]:
    """Rate of the first policy less that of the second over pairs: (difference, low, high).

    The 95 % interval is Newcombe's (Statistics in Medicine 17, 1998, 2635-2650, method 10): it
    combines the Wilson intervals of both rates with the correlation of the pairs.

    Raises:
        ValueError: a negative count, or no pairs at all.
    """
    counts = (both, only_first, only_second, neither)
    pairs = sum(counts)
    if min(counts) < 0 or not pairs:
        raise ValueError(f"pairs {counts} must not be negative, nor all of them 0")
    first, second = (both + only_first) / pairs, (both + only_second) / pairs
    low1, high1 = wilson_interval(both + only_first, pairs)
    low2, high2 = wilson_interval(both + only_second, pairs)
    correlation = _correlation(both, only_first, only_second, neither)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    difference = first - second
    return (
        difference,
        difference - reach(first - low1, high2 - second),
        difference + reach(high1 - first, second - low2),
    )


def _correlation(a: int, b: int, c: int, d: int) -> float:
    """Phi of the 2 x 2 table with Newcombe's continuity correction."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if not margins:
        return 0.0
    product = a * d - b * c
    if product > 0:
        product = max(product - (a + b + c + d) / 2, 0.0)
    return product / math.sqrt(margins)


def log_ratio(only_first: int, only_second: int) -> float:
    """Natural logarithm of L_n above, for n = only_first + only_second."""
    differing = only_first + only_second
    return (
        differing * math.log(2.0)
        + math.lgamma(only_first + 1)
        + math.lgamma(only_second + 1)
        - math.lgamma(differing + 2)
    )


@dataclass
class PairedStopping:
    """Counts pairs and decides after each of them whether the comparison may stop.

    Attributes:
        alpha: probability that equal policies are called different, over all looks together.
        both, only_first, only_second, neither: pairs so far.
        largest: largest logarithm of the ratio so far.
    """

    alpha: float = ALPHA
    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0
    largest: float = 0.0

    def add(self, first: bool, second: bool) -> None:
        """Counts the outcomes of one more pair."""
        self.both += first and second
        self.only_first += first and not second
        self.only_second += second and not first
        self.neither += not (first or second)
        self.largest = max(self.largest, log_ratio(self.only_first, self.only_second))

    @property
    def p_value(self) -> float:
        """P value, valid at whatever pair the comparison stops."""
        return min(1.0, math.exp(-self.largest))

    @property
    def decided(self) -> bool:
        """True where the policies differ at level alpha."""
        return self.largest >= -math.log(self.alpha)

    def hopeless(self, remaining: int) -> bool:
        """Returns True where no outcome of the `remaining` pairs could decide the comparison.

        Stopping then costs nothing: the other pairs could not change the verdict.
        """
        best = max(
            log_ratio(self.only_first + remaining, self.only_second),
            log_ratio(self.only_first, self.only_second + remaining),
        )
        return not self.decided and best < -math.log(self.alpha)
