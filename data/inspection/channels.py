"""Names, ranges and quantiles of the channels of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.inspection.reports import Channels
from data.spec import DatasetSpec

ARM_CHANNELS = ("x", "y", "z", *(f"rot{i}" for i in range(6)), "gripper")
SIDES = {1: ("",), 2: ("left ", "right ")}
QUANTILES = (0.01, 0.5, 0.99)


class Range(NamedTuple):
    """How the values of one channel are spread."""

    name: str
    unit: str
    low: float
    one_percent: float
    median: float
    ninety_nine_percent: float
    high: float

    @property
    def span(self) -> float:
        """Between the 1 % and the 99 % quantile."""
        return self.ninety_nine_percent - self.one_percent


def channel_names(spec: DatasetSpec) -> tuple[tuple[str, str], ...]:
    """(name, unit) of the channels that the row fills, in order."""
    if spec.joints:
        places = [(c.key, i) for c in spec.joints for i in range(c.first, c.end)]
        return tuple((f"{key}[{i}]", "") for key, i in places)
    return tuple(
        (f"{side}{name}", "m" if name in ("x", "y", "z") else "")
        for side in SIDES[len(spec.arms)]
        for name in ARM_CHANNELS
    )


def channels(rows: NDArray[np.floating], keep: int) -> Channels:
    """Extremes of rows [n, D], and at most `keep` of them, evenly chosen."""
    chosen = rows[even_places(len(rows), keep)]
    return Channels(
        rows.min(axis=0).astype(np.float32),
        rows.max(axis=0).astype(np.float32),
        chosen.astype(np.float32),
    )


def even_places(count: int, keep: int) -> NDArray[np.int64]:
    """At most `keep` of 0 .. count - 1 in rising order, the first and the last among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, keep)).round().astype(np.int64))


def ranges(spec: DatasetSpec, parts: Sequence[Channels]) -> list[Range]:
    """The ranges of the channels over all episodes."""
    if not parts:
        return []
    low = np.min([part.low for part in parts], axis=0)
    high = np.max([part.high for part in parts], axis=0)
    inner = np.quantile(np.concatenate([part.rows for part in parts]), QUANTILES, axis=0)
    return [
        Range(name, unit, *(float(values[i]) for values in (low, *inner, high)))
        for i, (name, unit) in enumerate(channel_names(spec))
    ]
