"""Chunks for a robot that does not wait: the next query is sent while the last chunk still runs.

Time is counted in actions that were carried out, not in seconds: during a slow first answer, or a
pause in which the robot holds its pose, no time passes, so the next chunk begins at the right
place. docs/control.md has a diagram.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.client.remote import TRAINED
from eval.rotations import ROT6D_LAYOUTS
from eval.tasks.profiles import NO_ROTATION

Rows = NDArray[np.float32]

_DELAYS = 10  # answers whose largest delay is expected of the next
_ARM = 10  # numbers of an arm: xyz, 6-D rotation, gripper


@dataclass(frozen=True)
class Strategy:
    """A rule by which chunks follow one another.

    Attributes:
        overlap: query while the last chunk runs; otherwise the robot holds its pose and waits.
        ensemble: mean of all chunks with an action for the present step (ACT), otherwise the last.
        prefix: ``inpaint``: send the policy the actions that will be carried out before it
            answers, and those planned after them (real-time chunking); ``trained``: send the
            former to a policy that was trained for delays; empty: send none.
        restless: query as soon as an answer has come; otherwise after `horizon` actions.
    """

    overlap: bool
    ensemble: bool
    prefix: str
    restless: bool


STRATEGIES: Mapping[str, Strategy] = {
    "blocking": Strategy(overlap=False, ensemble=False, prefix="", restless=False),
    "switch": Strategy(overlap=True, ensemble=False, prefix="", restless=False),
    "ensemble": Strategy(overlap=True, ensemble=True, prefix="", restless=True),
    "inpaint": Strategy(overlap=True, ensemble=False, prefix="inpaint", restless=False),
    "trained": Strategy(overlap=True, ensemble=False, prefix=TRAINED, restless=False),
}


@dataclass(frozen=True)
class Timing:
    """The way one robot carries out chunks.

    Attributes:
        horizon: actions of a chunk that are carried out before the next query.
        stride: of every so many rows of a chunk one is an action.
        feedback_channels: leading channels of proprio that the last action replaces.
        rotation_layout: 6-D layout of the rows, or "none" for joints.
        arms: arms of a row that have rotations, 0 and 1; other numbers have a plain mean.
        decay: m of temporal ensembling: weights exp(-m i), i = 0 the oldest chunk.
        first_delay: expected delay of the first answer, in actions.
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
        known = sorted(ROT6D_LAYOUTS) if self.arms else [*sorted(ROT6D_LAYOUTS), NO_ROTATION]
        if self.rotation_layout not in known:
            raise ValueError(
                f"rotation_layout {self.rotation_layout!r} with arms {self.arms}; one of {known}"
            )


@dataclass(frozen=True)
class _Chunk:
    begin: int  # number of the action that row 0 is
    rows: Rows


class ChunkStream:
    """Turns chunks into actions, with one query pending at most.

    In each control step: `query` where `wants_query`, `answer` when the chunk has come, then `take`
    and `carried_out`.

    Args:
        strategy: a row of `STRATEGIES`.
        timing: of the robot.
        relative_channels: of the action contract; a prefix is not possible with them.
    """

    def __init__(
        self, strategy: Strategy, timing: Timing, *, relative_channels: tuple[int, ...]
    ) -> None:
        if strategy.prefix and relative_channels:
            raise ValueError(
                f"channels {relative_channels} are relative to the proprio of their own query; "
                "another chunk cannot continue them: use a strategy without a prefix"
            )
        self._strategy = strategy
        self._timing = timing
        self.reset(np.zeros(0, np.float32))

    def reset(self, proprio: ArrayLike) -> None:
        """Starts an episode whose first query has `proprio` [D], and drops all chunks."""
        self._proprio = np.array(proprio, np.float32)
        self._chunks: list[_Chunk] = []
        self._asked: int | None = None  # number of actions at the pending query
        self._now = 0  # actions carried out
        self._delays: deque[int] = deque(maxlen=_DELAYS)

    @property
    def expected_delay(self) -> int:
        """Actions until an answer comes: the most of the last ones."""
        return max(self._delays, default=self._timing.first_delay)

    @property
    def waiting(self) -> bool:
        """True while a query is pending."""
        return self._asked is not None

    @property
    def wants_query(self) -> bool:
        """True when the next query is due."""
        if self.waiting:
            return False
        if not self._chunks or self._strategy.restless:
            return True
        return self._now - self._chunks[-1].begin >= self._timing.horizon

    def query(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the observation for the policy: with the stream's proprio, and with a prefix."""
        if self.waiting:
            raise RuntimeError("a query is pending already")
        self._asked = self._now
        asked = {**observation, "proprio": self._proprio.copy()}
        trained = self._strategy.prefix == TRAINED
        if trained:  # with the first query too, so that other policies refuse at once
            asked["prefix_mode"] = TRAINED
        left = self._rows_left()
        if self._strategy.prefix and len(left):
            committed = min(self.expected_delay * self._timing.stride, len(left))
            asked.update(prefix=left[:committed] if trained else left, prefix_committed=committed)
        return asked

    def abandon(self) -> None:
        """Gives the pending query up; the present chunk continues, and a new query may follow."""
        self._asked = None

    def drop(self) -> None:
        """Drops all chunks; the next one begins where the robot is."""
        self._chunks = []

    def answer(self, chunk: ArrayLike) -> None:
        """Adds the chunk [T, D] of the pending query.

        Its first rows, of actions that were carried out since the query, are skipped.

        Raises:
            RuntimeError: no query is pending.
            ValueError: the chunk is too narrow, too short, or not finite.
        """
        if self._asked is None:
            raise RuntimeError("a chunk without a query")
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

    def next_row(self) -> Rows | None:
        """Returns what `take` will, and does not carry it out."""
        rows = [row for row in map(self._row, self._chunks) if row is not None]
        if not rows:
            return None
        return rows[-1] if len(rows) == 1 else ensembled(rows, self._timing)

    def take(self) -> Rows | None:
        """Returns the next action [D], or None where there is none: hold the pose."""
        row = self.next_row()
        if row is None:
            return None
        self._now += 1
        # Chunks that have ended go; the latest stays, as `wants_query` counts from its beginning.
        earlier = [chunk for chunk in self._chunks[:-1] if self._row(chunk) is not None]
        self._chunks = [*earlier, self._chunks[-1]]
        return row

    def carried_out(self, row: ArrayLike) -> None:
        """Sets the row [D] that was commanded, for the proprio of the next query."""
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
    """Returns the weighted mean [D] of actions, oldest first (ACT), with orthonormal rotations.

    A gripper becomes the mean of the probabilities. Where opposite rotations have no mean, the
    latest is used.
    """
    weights = np.exp(-timing.decay * np.arange(len(rows)))
    mean = np.average(np.stack(rows).astype(np.float64), axis=0, weights=weights)
    for arm in timing.arms:
        layout = ROT6D_LAYOUTS[timing.rotation_layout]
        turn = slice(_ARM * arm + 3, _ARM * arm + 9)
        try:
            mean[turn] = layout.from_matrix(layout.to_matrix(mean[turn]))
        except ValueError:
            mean[turn] = rows[-1][turn]
    return mean.astype(np.float32)
