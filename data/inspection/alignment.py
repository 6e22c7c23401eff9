"""How many frames one signal of an episode comes after another: cross-correlation over episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

BLOCK = 20  # frames that are drawn together when the estimate is repeated
RESAMPLES = 200
MIN_BLOCKS = 4
NEAR = 1  # frames between estimates that are called the same
_TINY = 1e-12


class Lag(NamedTuple):
    """The shift at which two signals agree best.

    Attributes:
        frames: what leads[t] shows is in follows[t + frames]; in parts of a frame.
        peak: correlation at this shift.
        at_zero: correlation without a shift.
        sure: share of the resamples of the data whose best shift is the same within a frame.
    """

    frames: float
    peak: float
    at_zero: float
    sure: float


def find_lag(pairs: Sequence[tuple[Float64, Float64]], max_lag: int, seed: int = 0) -> Lag | None:
    """The lag over all episodes; None where there is too little to tell.

    Args:
        pairs: leads and follows [T, C] of each episode, around zero, channels of one scale.
        max_lag: frames to either side.
        seed: of the resamples.
    """
    lags = np.arange(-max_lag, max_lag + 1)
    blocks = [_blocks(one, other, lags) for one, other in pairs if len(one) > max_lag]
    if sum(map(len, blocks)) < MIN_BLOCKS:
        return None
    sums = np.concatenate(blocks)  # [blocks, lags, 3]
    curve = _correlation(sums.sum(axis=0))
    best = int(np.argmax(curve))
    drawn = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES
    )
    curves = _correlation(np.einsum("rb,blk->rlk", drawn, sums))
    near = np.abs(np.argmax(curves, axis=1) - best) <= NEAR
    return Lag(
        frames=float(lags[best] + _vertex(curve, best)),
        peak=float(curve[best]),
        at_zero=float(curve[max_lag]),
        sure=float(near.mean()),
    )


def _blocks(leads: Float64, follows: Float64, lags: NDArray[np.int64]) -> Float64:
    """Sums of products and squares of each stretch of frames, at every lag: [blocks, lags, 3]."""
    frames = len(leads)
    terms = np.zeros((frames, len(lags), 3))
    for place, lag in enumerate(lags.tolist()):
        first, end = max(0, -lag), min(frames, frames - lag)
        one, other = leads[first:end], follows[first + lag : end + lag]
        for number, product in enumerate((one * other, one**2, other**2)):
            terms[first:end, place, number] = product.sum(axis=1)
    return np.add.reduceat(terms, np.arange(0, frames, BLOCK), axis=0)


def _correlation(sums: Float64) -> Float64:
    return sums[..., 0] / np.sqrt(np.maximum(sums[..., 1] * sums[..., 2], _TINY))


def _vertex(curve: Float64, best: int) -> float:
    """Where the parabola through the largest value and its neighbours peaks, from the largest."""
    if not 0 < best < len(curve) - 1:
        return 0.0
    left, middle, right = curve[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if bend < -_TINY else 0.0
