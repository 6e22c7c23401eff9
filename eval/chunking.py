"""From action chunks to single actions, with the proprio that goes into the next query."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ChunkExecutor:
    """Queue of actions and proprio of one environment.

    Args:
        executed: rows of each chunk that are carried out.
        stride: every how many rows of a chunk one is carried out.
        feedback_channels: leading channels of proprio that the last row handed out replaces.
    """

    def __init__(self, *, executed: int, stride: int, feedback_channels: int) -> None:
        if executed < 1 or stride < 1 or feedback_channels < 0:
            raise ValueError(
                f"executed {executed} and stride {stride} must be at least 1, "
                f"feedback_channels {feedback_channels} at least 0"
            )
        self._executed = executed
        self._stride = stride
        self._feedback = feedback_channels
        self._queue: deque[NDArray[np.float32]] = deque()
        self._proprio = np.zeros(0, np.float32)

    def reset(self, proprio: ArrayLike) -> None:
        """Starts an episode whose first query carries `proprio` [D]; drops what was queued."""
        self._queue.clear()
        self._proprio = np.array(proprio, np.float32)

    @property
    def needs_chunk(self) -> bool:
        """Whether the policy must be asked before `take` can be called again."""
        return not self._queue

    @property
    def proprio(self) -> NDArray[np.float32]:
        """Proprio [D] of the next query."""
        return self._proprio.copy()

    def put(self, chunk: ArrayLike) -> None:
        """Queues the rows of `chunk` [T, D] that are to be carried out.

        Raises:
            ValueError: rows are still queued, the chunk is too short or too narrow, or not finite.
        """
        rows = np.asarray(chunk, np.float32)
        needed = (self._executed - 1) * self._stride + 1
        if self._queue:
            raise ValueError(f"{len(self._queue)} rows of the last chunk are still to be done")
        if rows.ndim != 2 or len(rows) < needed or rows.shape[1] != self._proprio.size:
            raise ValueError(
                f"chunk {rows.shape} must be [T, {self._proprio.size}] with T at least {needed} "
                f"(executed {self._executed}, stride {self._stride}; columns of the task's row)"
            )
        if not np.isfinite(rows).all():
            raise ValueError("the policy returned an action that is not finite")
        self._queue.extend(rows[: needed : self._stride])

    def take(self) -> NDArray[np.float32]:
        """The next action row [D]; remembers it for the feedback into proprio.

        Raises:
            IndexError: nothing is queued.
        """
        row = self._queue.popleft()
        self._proprio[: self._feedback] = row[: self._feedback]
        return row
