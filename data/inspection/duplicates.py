"""Episodes that are recorded twice: bit for bit, or nearly the same path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.inspection.reports import EpisodeReport

NEAR = 0.001  # m, and the same number for rotation and gripper, at each of the compared points
STILL = 0.01  # paths that span less are alike because they hardly move


class Copy(NamedTuple):
    """Episode number `second` repeats number `first`."""

    first: int
    second: int
    exact: bool


def copies(episodes: Sequence[EpisodeReport]) -> list[Copy]:
    """Every episode that repeats an earlier one, once."""
    if not episodes:
        return []
    found: list[Copy] = []
    first_of: dict[bytes, int] = {}
    for number, episode in enumerate(episodes):
        if episode.digest in first_of:
            found.append(Copy(first_of[episode.digest], number, exact=True))
        else:
            first_of[episode.digest] = number
    return sorted([*found, *_near(episodes, sorted(first_of.values()))], key=lambda c: c.second)


def _near(episodes: Sequence[EpisodeReport], numbers: list[int]) -> list[Copy]:
    """Sorted by their mean, paths that agree everywhere lie close together."""
    paths = np.stack([episodes[number].path.reshape(-1) for number in numbers])
    spans = np.array([np.ptp(episodes[number].path, axis=0).max() for number in numbers])
    means = paths.mean(axis=1)
    order = np.argsort(means, kind="stable")
    ends = np.searchsorted(means[order], means[order] + NEAR, side="right")
    earlier: dict[int, int] = {}
    for place, end in enumerate(ends):
        one, others = order[place], order[place + 1 : end]
        if spans[one] < STILL or not len(others):
            continue
        alike = others[np.abs(paths[others] - paths[one]).max(axis=1) <= NEAR]
        for other in alike:
            low, high = sorted((numbers[one], numbers[other]))
            earlier[high] = min(low, earlier[high]) if high in earlier else low
    return [Copy(first, second, exact=False) for second, first in earlier.items()]
