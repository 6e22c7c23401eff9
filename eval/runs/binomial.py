"""Exact inference on one success rate: Blaker's interval.

A 95 % interval should contain the true rate in 95 % of evaluations, whatever the rate. Wilson's
interval keeps that on average only: near rates of 0 and 1, where good policies are, its coverage
falls to 84 % (20 or 50 episodes). Blaker's interval (Canadian Journal of Statistics 28, 2000,
783-798) never falls below 95 %, as Clopper and Pearson's, and is contained in theirs.
docs/receipts.md has the coverage of each.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_STEPS = 200  # rates at which a bound is searched before it is bisected
_BISECTIONS = 50


@functools.lru_cache(maxsize=4096)
def success_interval(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Blaker's exact interval of a success rate; (0, 1) without trials.

    Args:
        successes: of the trials.
        trials: independent episodes.
        alpha: the interval contains the true rate with a probability of at least 1 - alpha.

    Raises:
        ValueError: not 0 <= successes <= trials, or alpha outside (0, 1).
    """
    if not (0 <= successes <= trials and 0 < alpha < 1):
        raise ValueError(f"{successes} successes in {trials} trials, alpha {alpha}")
    if trials == 0:
        return 0.0, 1.0
    # The upper bound of the successes is 1 less the lower bound of the failures.
    return (
        _lower_bound(successes, trials, alpha),
        1.0 - _lower_bound(trials - successes, trials, alpha),
    )


def _lower_bound(successes: int, trials: int, alpha: float) -> float:
    """Smallest rate that Blaker's test of these successes accepts."""
    if successes == 0:
        return 0.0
    # It lies between the bounds of the one-sided tests at alpha / 2 and at alpha.
    low = _rate_of_tail(successes, trials, alpha / 2)
    high = _rate_of_tail(successes, trials, alpha)
    rates = np.linspace(low, high, _STEPS)
    accepted = _acceptability(rates, successes, trials) > alpha
    accepted[-1] = True  # by the definition of `high`, whatever its rounding
    first = int(accepted.argmax())
    if first == 0:
        return float(low)
    below, above = float(rates[first - 1]), float(rates[first])
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        if _acceptability(np.array([middle]), successes, trials)[0] > alpha:
            above = middle
        else:
            below = middle
    return below  # of the two sides of the bound the wider interval's


def _rate_of_tail(successes: int, trials: int, tail: float) -> float:
    """Rate at which `successes` or more have the probability `tail`: Clopper and Pearson's."""
    below, above = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        if _probabilities(np.array([middle]), trials)[0, successes:].sum() < tail:
            below = middle
        else:
            above = middle
    return below


def _acceptability(rates: NDArray[np.float64], successes: int, trials: int) -> NDArray[np.float64]:
    """Probability of outcomes as unusual as `successes`, for each rate.

    The tail that holds the successes, and as much of the other one as is no more likely.
    """
    probabilities = _probabilities(rates, trials)  # [rates, trials + 1]
    at_most = np.cumsum(probabilities, axis=1)  # P(X <= k)
    at_least = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]  # P(X >= k)
    up, down = at_least[:, successes], at_most[:, successes]
    tail = np.minimum(up, down)
    limit = tail[:, None] * (1 + 1e-12)  # equal tails count in spite of rounding
    # Both sums are monotone, so the largest one within the limit is the opposite tail.
    opposite_low = np.where(at_most <= limit, at_most, 0.0).max(axis=1)
    opposite_high = np.where(at_least <= limit, at_least, 0.0).max(axis=1)
    return np.minimum(1.0, tail + np.where(up <= down, opposite_low, opposite_high))


def _probabilities(rates: NDArray[np.float64], trials: int) -> NDArray[np.float64]:
    """Binomial probabilities ``[rates, trials + 1]`` of rates inside (0, 1)."""
    k = np.arange(trials + 1)
    logs = np.log(rates)[:, None] * k + np.log1p(-rates)[:, None] * (trials - k)
    return np.exp(_log_choose(trials) + logs)


@functools.lru_cache(maxsize=64)
def _log_choose(trials: int) -> NDArray[np.float64]:
    """Logarithm of the number of ways to choose k of the trials, for all k."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])  # of factorials
    return logs[-1] - logs - logs[::-1]
