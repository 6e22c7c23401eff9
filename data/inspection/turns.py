"""In which order a recording writes its quaternions, from how the hands turn.

A robot at a table turns its hands mostly about the vertical: to line up with things, and as its
base turns. In the wrong order such turns become turns about a horizontal axis. Neither the largest
number nor a sign tells the order: w is largest where the hand's frame is that of the base, x where
it points down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.inspection.geometry import matrices
from data.rotations import columns_from_quat_xyzw

Float64 = NDArray[np.float64]

ORDERS = {"xyzw": (0, 1, 2, 3), "wxyz": (1, 2, 3, 0)}
TURN_S = 0.3  # turns are taken over this time, so that the noise of single frames shows less


class Turns(NamedTuple):
    """What the rotations of one arm show, read in the order of each name.

    Attributes:
        vertical: share of the turning that is about the base's z axis.
        turned: rad, how far a hand turns within an episode, in the median.
        norm: the largest distance of a norm from 1.
        dominant: column that is largest in the mean, 0 to 3.
    """

    vertical: dict[str, float]
    turned: float
    norm: float
    dominant: int


def quaternion_turns(episodes: Sequence[Float64], rate_hz: float) -> Turns | None:
    """Quaternions [T, 4] of each episode as recorded; None without any."""
    good = [rows for rows in episodes if len(rows) > 1 and np.linalg.norm(rows, axis=1).min() > 0]
    if not good:
        return None
    stride = max(1, round(TURN_S * rate_hz))
    sums = {name: np.zeros(3) for name in ORDERS}
    turned = []
    for rows in good:
        for name, order in ORDERS.items():
            rotations = matrices(columns_from_quat_xyzw(rows[:, order]))
            axes = _axes(rotations[stride:] @ rotations[:-stride].swapaxes(-1, -2))
            sums[name] += (axes**2).sum(axis=0)
            if name == "xyzw":  # the angle is the same in either order
                turned.append(float(np.linalg.norm(axes, axis=1).max(initial=0.0)))
    every = np.concatenate(good)
    return Turns(
        vertical={name: float(s[2] / max(s.sum(), 1e-12)) for name, s in sums.items()},
        turned=float(np.median(turned)),
        norm=float(np.abs(np.linalg.norm(every, axis=1) - 1).max()),
        dominant=int(np.argmax(np.abs(every).mean(axis=0))),
    )


def _axes(turn: Float64) -> Float64:
    """Axis times sine of the angle of rotations [n, 3, 3]: [n, 3]."""
    return 0.5 * np.stack(
        (
            turn[:, 2, 1] - turn[:, 1, 2],
            turn[:, 0, 2] - turn[:, 2, 0],
            turn[:, 1, 0] - turn[:, 0, 1],
        ),
        axis=1,
    )
