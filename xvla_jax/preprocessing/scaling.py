"""Scales state and actions for networks that were trained on normalised numbers, as in LeRobot.

The network sees and predicts normalised numbers, robots use their own. The sampler mixes noise with
predictions, so no change of weights can replace the scaling before and after the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

import numpy as np
from pydantic import Field

from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.untrusted import STRICT

_Numbers = Annotated[tuple[float, ...], Field(max_length=65_536)]

# Mode: its two statistics, and True if they are the ends of a range that becomes -1 .. 1.
MODES: Final[Mapping[str, tuple[str, str, bool]]] = {
    "MEAN_STD": ("mean", "std", False),
    "MIN_MAX": ("min", "max", True),
    "QUANTILES": ("q01", "q99", True),
    "QUANTILE10": ("q10", "q90", True),
}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Statistics of the first channels of a vector, and the mode of scaling.

    Attributes:
        mode: key of ``MODES``.
        low: the mode's first statistic, a number for each channel.
        high: its second.
        eps: against division by zero.
    """

    __pydantic_config__: ClassVar = STRICT | {"extra": "forbid"}

    mode: str
    low: _Numbers
    high: _Numbers
    eps: Annotated[float, Field(ge=0)]

    def __post_init__(self) -> None:
        """Refuses an unknown mode and statistics that are not finite or not in pairs."""
        numbers = np.asarray([self.low, self.high]) if len(self.low) == len(self.high) else None
        if self.mode not in MODES or numbers is None or not np.isfinite(numbers).all():
            raise CheckpointError(
                f"normalisation {self.mode!r} with {len(self.low)} and {len(self.high)} numbers; "
                f"one of {', '.join(MODES)} is expected, with as many finite numbers of both"
            )

    @property
    def width(self) -> int:
        """Channels that are scaled; any after them are padding."""
        return len(self.low)

    def scale(self, values: np.ndarray, *, what: str) -> np.ndarray:
        """Scales a robot's numbers ``float32[..., d]``, d >= width, to the network's units.

        Raises:
            InputError: there are fewer channels than statistics; ``what`` begins the message.
        """
        if values.shape[-1] < self.width:
            raise InputError(
                f"{what} has {values.shape[-1]} channels; this checkpoint normalises {self.width}"
            )
        low, high = self._numbers()
        out = np.array(values, np.float32)
        real = out[..., : self.width]
        if MODES[self.mode][2]:
            real[...] = 2 * (real - low) / self._range(low, high) - 1
        else:
            real[...] = (real - low) / (high + np.float32(self.eps))
        return out

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `scale`, up to ``eps``, which LeRobot does not add back."""
        low, high = self._numbers()
        out = np.array(values, np.float32)
        real = out[..., : self.width]
        if MODES[self.mode][2]:
            real[...] = (real + 1) / 2 * self._range(low, high) + low
        else:
            real[...] = real * high + low
        return out

    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)

    def _range(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.where(high == low, np.float32(self.eps), high - low)
