"""The one client: environment observations in, chunks in, environment actions out."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval import states
from eval.commands import commanded_poses, row_to_action
from eval.tasks.profiles import ARM_WIDTH, ClientProfile


class EpisodeClient:
    """Queue, proprio and instruction of one environment, as its profile says.

    One turn: `request` where `needs_chunk`, answer it with `put`, then `act` until the queue is
    empty. A chunk that is refused leaves everything as it was, so the same request can be made
    again.

    Args:
        profile: row of the task table.
    """

    def __init__(self, profile: ClientProfile) -> None:
        self._profile = profile
        self._queue: deque[NDArray[np.float32]] = deque()
        self._proprio: NDArray[np.float64] | None = None
        self._base: NDArray[np.float32] | None = None
        self._last: NDArray[np.float32] | None = None
        self._instruction = ""

    def reset(self) -> None:
        """Starts an episode; what the profile keeps over a reset stays."""
        self._queue.clear()
        self._base = self._last = None
        self._instruction = ""
        if not self._profile.keeps_proprio:
            self._proprio = None

    def instruct(self, text: str) -> None:
        """Takes note of the instruction of the next query."""
        changed = bool(self._instruction) and text != self._instruction
        if changed and self._profile.clears_on_instruction:
            self._queue.clear()
        self._instruction = text

    @property
    def needs_chunk(self) -> bool:
        """Whether the policy must be asked before `act` can be called again."""
        return not self._queue

    @property
    def queued(self) -> int:
        """Actions left of the last chunk."""
        return len(self._queue)

    @property
    def proprio(self) -> NDArray[np.float64] | None:
        """What the client holds of proprio [D] between queries, None before the first."""
        return None if self._proprio is None else self._proprio.copy()

    @property
    def xyz_base(self) -> NDArray[np.float32] | None:
        """Position (m) that the next chunk's positions are offsets from, where they are."""
        return None if self._base is None else self._base.copy()

    def request(self, raw: states.Raw) -> dict[str, Any]:
        """The observation of door 2 that asks for the next chunk.

        Args:
            raw: the environment's observation, keys as the profile names them.

        Raises:
            ValueError: actions are still queued.
            ObservationError: something is missing in `raw`.
        """
        if self._queue:
            raise ValueError(f"{len(self._queue)} rows of the last chunk are still to be done")
        images = states.pictures(self._profile, raw)
        told = self._told(raw)
        if self._profile.xyz_base is not None and self._base is None:
            place = states.position(self._profile.xyz_base, self._profile.xyz_base_frame, raw)
            self._base = place.astype(np.float32)
        self._proprio = told
        return {
            "images": images,
            "instruction": self._instruction,
            "proprio": told.astype(np.float32),
            "domain_id": self._profile.domain_id,
        }

    def put(self, chunk: ArrayLike) -> None:
        """Queues the rows of `chunk` [T, D] that are to be carried out.

        Raises:
            ValueError: rows are still queued, nothing was requested, the chunk is too short or too
                narrow, or it is not finite.
        """
        profile, rows = self._profile, np.asarray(chunk, np.float32)
        if self._queue:
            raise ValueError(f"{len(self._queue)} rows of the last chunk are still to be done")
        if self._proprio is None:
            raise ValueError("a chunk came before any request")
        needed = profile.rows_needed
        if rows.ndim != 2 or len(rows) < needed or rows.shape[1] != profile.action_width:
            raise ValueError(
                f"chunk {rows.shape} must be [T, {profile.action_width}] with T at least {needed} "
                f"(executed {profile.executed}, stride {profile.stride}; columns of the task's row)"
            )
        if not np.isfinite(rows).all():
            raise ValueError("the policy returned an action that is not finite")
        kept = rows[: needed : profile.stride].copy()
        if self._base is not None:
            kept[:, :3] += self._base
        self._queue.extend(kept)
        if profile.feedback == "chunk_end":
            self._proprio[: profile.feedback_channels] = rows[-1, : profile.feedback_channels]

    def take(self) -> NDArray[np.float32]:
        """The next action row [D], with an absolute position; `command` makes it an action.

        Raises:
            IndexError: nothing is queued.
        """
        row = self._queue.popleft()
        self._last = row
        if self._base is not None:
            self._base = row[:3].copy()
        if self._profile.feedback == "executed" and self._proprio is not None:
            channels = self._profile.feedback_channels
            self._proprio[:channels] = row[:channels]
        return row

    def act(self) -> NDArray[np.floating]:
        """The next action in the environment's form and dtype."""
        return row_to_action(self._profile, self.take())

    def _told(self, raw: states.Raw) -> NDArray[np.float64]:
        again = self._profile.feedback in ("measured", "commanded_pose")
        if self._proprio is not None and not again:
            return self._proprio
        told = states.proprio(self._profile, raw)
        if self._profile.shift_in_place:
            states.shift_in_place(self._profile, raw)
        if self._profile.feedback == "commanded_pose" and self._last is not None:
            for arm, pose in enumerate(commanded_poses(self._profile, self._last)):
                told[arm * ARM_WIDTH : arm * ARM_WIDTH + 9] = pose
        return told
