"""Enumerates the coverage of intervals of a success rate.

``python -m benchmarks.evaluation.coverage``

For a true rate, each number of successes has its binomial probability; the coverage is that of the
numbers whose interval contains the rate.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from eval.runs.binomial import success_interval
from eval.runs.statistics import wilson_interval

_EPISODES = (10, 20, 50, 100, 200, 500)
_RATES = np.linspace(0.0005, 0.9995, 4000)
_RANGE = (0.94, 0.98)  # of a good coverage


def _clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    exact = stats.binomtest(successes, trials).proportion_ci(method="exact")
    return float(exact.low), float(exact.high)


INTERVALS: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "Wilson": wilson_interval,
    "Clopper-Pearson": _clopper_pearson,
    "Blaker": success_interval,
}


def _measure(
    interval: Callable[[int, int], tuple[float, float]], trials: int
) -> tuple[np.ndarray, float]:
    """Returns the coverage at each of the rates, and the mean width over the outcomes."""
    outcomes = np.arange(trials + 1)
    low, high = np.array([interval(int(k), trials) for k in outcomes]).T
    probabilities = stats.binom.pmf(outcomes, trials, _RATES[:, None])  # [rates, trials + 1]
    inside = (low <= _RATES[:, None]) & (_RATES[:, None] <= high)
    return (probabilities * inside).sum(axis=1), float((high - low).mean())


def main(_: Sequence[str]) -> int:
    """Prints a line for each interval and number of episodes."""
    table = Table()
    for column in ("episodes", "interval", "lowest", "mean", "highest", "in 94 to 98 %", "width"):
        table.add_column(column, justify="right")
    for trials in _EPISODES:
        for name, interval in INTERVALS.items():
            covered, width = _measure(interval, trials)
            share = ((covered >= _RANGE[0]) & (covered <= _RANGE[1])).mean()
            numbers = (covered.min(), covered.mean(), covered.max(), share)
            table.add_row(str(trials), name, *(f"{x:.1%}" for x in numbers), f"{width:.3f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
