"""What to command while there is no action to carry out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class HoldExpiredError(RuntimeError):
    """The robot has held its pose for as long as it may; bring it to a stop that is safe."""


class HoldPose:
    """What to command while there is no action: the last commanded row, gripper and all.

    Never zeros: on an absolute controller they are a motion to the origin.

    Args:
        longest_steps: control steps in a row that may be held.
    """

    def __init__(self, *, longest_steps: int) -> None:
        if longest_steps < 1:
            raise ValueError(f"longest_steps is {longest_steps}; at least 1")
        self._longest = longest_steps
        self._row: NDArray[np.float32] | None = None
        self.held = 0

    def commanded(self, row: ArrayLike) -> None:
        """Notes a row [D] that goes to the robot; before the first action, its present pose."""
        self._row = np.array(row, np.float32)
        self.held = 0

    def hold(self) -> NDArray[np.float32]:
        """The row [D] to command again.

        Raises:
            HoldExpiredError: nothing was commanded yet, or it was held too long.
        """
        if self._row is None:
            raise HoldExpiredError("no pose was commanded yet; tell the robot's present one first")
        if self.held >= self._longest:
            raise HoldExpiredError(f"the pose was held for {self.held} control steps, the most")
        self.held += 1
        return self._row.copy()
