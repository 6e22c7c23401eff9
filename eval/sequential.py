"""When a paired comparison of two policies may stop: a mixture sequential probability ratio test.

Pairs that both policies solved, or neither, say nothing of which is better. Under the hypothesis of
equal policies each of the others is a fair coin. Against the fair coin stands a mixture of all
coins, p ~ Beta(1, 1), under which w wins of the first policy among n differing pairs have the
probability w! (n - w)! / (n + 1)!. The ratio

    L_n = 2^n w! (n - w)! / (n + 1)!

is a martingale with mean 1 under the hypothesis, so it ever reaches 1 / alpha with a probability of
at most alpha (Ville 1939; Robbins 1970). One may therefore look after each pair and stop as soon as
it does; 1 / max L_n is a p value that holds at whatever time one stops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ALPHA = 0.05


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
    """Decides after each pair whether to go on.

    Attributes:
        alpha: probability of calling equal policies different, over all looks together.
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
        """Takes in the outcomes of one more pair."""
        self.both += first and second
        self.only_first += first and not second
        self.only_second += second and not first
        self.neither += not (first or second)
        self.largest = max(self.largest, log_ratio(self.only_first, self.only_second))

    @property
    def p_value(self) -> float:
        """Valid at whatever time one stops."""
        return min(1.0, math.exp(-self.largest))

    @property
    def decided(self) -> bool:
        """Whether the policies differ at level alpha."""
        return self.largest >= -math.log(self.alpha)

    def hopeless(self, remaining: int) -> bool:
        """Whether no outcome of the `remaining` pairs could decide any more.

        Stopping then costs nothing: it can only leave equal policies undecided.
        """
        best = max(
            log_ratio(self.only_first + remaining, self.only_second),
            log_ratio(self.only_first, self.only_second + remaining),
        )
        return not self.decided and best < -math.log(self.alpha)
