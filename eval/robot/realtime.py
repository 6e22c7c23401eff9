"""Chunks for a robot that does not wait: the next one is asked for while the last one still runs.

Time is counted in actions that were carried out, never in seconds: a slow first answer, or a pause
in which the robot held its pose, moves nothing, so that it cannot spoil where the next chunk
begins. docs/control.md has a picture.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.rotations import ROT6D_LAYOUTS

Rows = NDArray[np.float32]

_DELAYS = 10  # answers that an expected delay is the largest of
_ARM = 10  # numbers of an arm: xyz, 6-D rotation, gripper


@dataclass(frozen=True)
class Strategy:
    """How chunks follow one another.

    Attributes:
        overlap: ask while the last chunk runs; otherwise the robot holds its pose and waits.
        ensemble: mean of all chunks that speak of the present step (ACT); otherwise the latest.
        inpaint: tell the policy what will have been carried out when it answers, and what was
            planned behind (real-time chunking).
        restless: ask again as soon as an answer is there; otherwise after `horizon` actions.
    """

    overlap: bool
    ensemble: bool
    inpaint: bool
    restless: bool


STRATEGIES: Mapping[str, Strategy] = {
    "blocking": Strategy(overlap=False, ensemble=False, inpaint=False, restless=False),
    "switch": Strategy(overlap=True, ensemble=False, inpaint=False, restless=False),
    "ensemble": Strategy(overlap=True, ensemble=True, inpaint=False, restless=True),
    "inpaint": Strategy(overlap=True, ensemble=False, inpaint=True, restless=False),
}


@dataclass(frozen=True)
class Timing:
    """How one robot carries out chunks.

    Attributes:
        horizon: actions of a chunk that are carried out before the next is asked for.
        stride: every how many rows of a chunk one is an action.
        feedback_channels: leading channels of proprio that the last action replaces.
        rotation_layout: 6-D layout of the rows.
        arms: which arms of a row have rotations, 0 and 1; all else has a plain mean.
        decay: m of temporal ensembling: weights exp(-m i), i = 0 the oldest chunk.
        first_delay: actions that an answer is expected to take, before one was measured.
    """

    horizon: int
    stride: int
    feedback_channels: int
    rotation_layout: str
    arms: tuple[int, ...]
    decay: float = 0.01
    first_delay: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.stride < 1 or self.feedback_channels < 0:
            raise ValueError(
                f"horizon {self.horizon} and stride {self.stride} must be at least 1, "
                f"feedback_channels {self.feedback_channels} at least 0"
            )
        if self.rotation_layout not in ROT6D_LAYOUTS:
            raise ValueError(
                f"rotation_layout {self.rotation_layout!r}; one of {sorted(ROT6D_LAYOUTS)}"
            )


@dataclass(frozen=True)
class _Chunk:
    begin: int  # action whose row is the first
    rows: Rows


class ChunkStream:
    """From chunks to actions, with a query on its way at any time or none.

    Each control step: `wants_query`, then `query` and later `answer`; `take` and `carried_out` in
    every step.

    Args:
        strategy: a row of `STRATEGIES`.
        timing: of the robot.
        relative_channels: of the action contract; a prefix means nothing with them.
    """

    def __init__(
        self, strategy: Strategy, timing: Timing, *, relative_channels: tuple[int, ...]
    ) -> None:
        if strategy.inpaint and relative_channels:
            raise ValueError(
                f"channels {relative_channels} are relative to the proprio of their own query; "
                "another chunk cannot go on from them: use a strategy without inpainting"
            )
        self._strategy = strategy
        self._timing = timing
        self.reset(np.zeros(0, np.float32))

    def reset(self, proprio: ArrayLike) -> None:
        """Begins an episode whose first query carries `proprio` [D]; forgets everything else."""
        self._proprio = np.array(proprio, np.float32)
        self._chunks: list[_Chunk] = []
        self._asked: int | None = None  # action at which the query on its way was asked
        self._now = 0  # actions carried out
        self._delays: deque[int] = deque(maxlen=_DELAYS)

    @property
    def expected_delay(self) -> int:
        """Actions that an answer will take: the most of late."""
        return max(self._delays, default=self._timing.first_delay)

    @property
    def waiting(self) -> bool:
        """Whether a query is on its way."""
        return self._asked is not None

    @property
    def wants_query(self) -> bool:
        """Whether the policy should be asked now."""
        if self.waiting:
            return False
        if not self._chunks or self._strategy.restless:
            return True
        return self._now - self._chunks[-1].begin >= self._timing.horizon

    def query(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The observation as the policy gets it: with our proprio, and with a prefix."""
        if self.waiting:
            raise RuntimeError("a query is on its way already")
        self._asked = self._now
        asked = {**observation, "proprio": self._proprio.copy()}
        left = self._rows_left()
        if self._strategy.inpaint and len(left):
            committed = min(self.expected_delay * self._timing.stride, len(left))
            asked.update(prefix=left, prefix_committed=committed)
        return asked

    def abandon(self) -> None:
        """The query failed; what runs goes on, and the policy may be asked again."""
        self._asked = None

    def drop(self) -> None:
        """Forgets what is planned; what the policy is asked next begins where the robot is."""
        self._chunks = []

    def answer(self, chunk: ArrayLike) -> None:
        """Takes the chunk [T, D] of the query that is on its way.

        Its first rows are those of actions that were carried out since, and are dropped.

        Raises:
            RuntimeError: no query is on its way.
            ValueError: the chunk is too narrow, too short, or not finite.
        """
        if self._asked is None:
            raise RuntimeError("a chunk came that nobody asked for")
        rows = np.asarray(chunk, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._proprio.size or not np.isfinite(rows).all():
            raise ValueError(f"chunk {rows.shape} must be finite numbers [T, {self._proprio.size}]")
        least = (self._timing.horizon - 1) * self._timing.stride + 1
        if len(rows) < least:
            raise ValueError(
                f"the chunk has {len(rows)} rows; horizon {self._timing.horizon} and stride "
                f"{self._timing.stride} need {least}"
            )
        if self._chunks:  # before the first one there was nothing to carry out
            self._delays.append(self._now - self._asked)
        if not self._strategy.overlap:
            rows = rows[:least]
        earlier = self._chunks if self._strategy.ensemble else []
        self._chunks = [*earlier, _Chunk(self._asked, rows)]
        self._asked = None

    def take(self) -> Rows | None:
        """The next action [D], or None where there is none: hold the pose."""
        speaking = [row for row in map(self._row, self._chunks) if row is not None]
        if not speaking:
            return None
        row = speaking[-1] if len(speaking) == 1 else ensembled(speaking, self._timing)
        self._now += 1
        earlier = [chunk for chunk in self._chunks[:-1] if self._row(chunk) is not None]
        self._chunks = [*earlier, self._chunks[-1]]
        return row

    def carried_out(self, row: ArrayLike) -> None:
        """Notes what was commanded in the end [D], for the proprio of the next query."""
        kept = self._timing.feedback_channels
        self._proprio[:kept] = np.asarray(row, np.float32)[:kept]

    def _row(self, chunk: _Chunk) -> Rows | None:
        index = (self._now - chunk.begin) * self._timing.stride
        return chunk.rows[index] if index < len(chunk.rows) else None

    def _rows_left(self) -> Rows:
        if not self._chunks:
            return np.zeros((0, self._proprio.size), np.float32)
        latest = self._chunks[-1]
        return latest.rows[(self._now - latest.begin) * self._timing.stride :].copy()


def ensembled(rows: list[Rows], timing: Timing) -> Rows:
    """One action [D] of several, oldest first: ACT's weighted mean, rotations made orthonormal.

    A gripper becomes the mean of the probabilities. Where two chunks turn in opposite ways, so that
    the mean is no rotation, the latest is taken.
    """
    weights = np.exp(-timing.decay * np.arange(len(rows)))
    mean = np.average(np.stack(rows).astype(np.float64), axis=0, weights=weights)
    layout = ROT6D_LAYOUTS[timing.rotation_layout]
    for arm in timing.arms:
        turn = slice(_ARM * arm + 3, _ARM * arm + 9)
        try:
            mean[turn] = layout.from_matrix(layout.to_matrix(mean[turn]))
        except ValueError:
            mean[turn] = rows[-1][turn]
    return mean.astype(np.float32)
