"""What a policy did in an episode, kept to film it and to draw it."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import write_bytes
from .tasks.spec import Episode


@dataclass(frozen=True)
class Trace:
    """Actions of one episode.

    Attributes:
        episode: which one.
        success: how it ended.
        rows: actions carried out, float32[n, D].
        chunks: what the policy answered, float32[Q, T, D]; Q is 0 for the scripted expert.
        asked_at: steps at which it was asked, int64[Q].
        path: measured proprio, float32[f, D]; f is 0 until the episode has been filmed.
    """

    episode: Episode
    success: bool
    rows: NDArray[np.float32]
    chunks: NDArray[np.float32]
    asked_at: NDArray[np.int64]
    path: NDArray[np.float32]

    def placed(self) -> Trace:
        """For a row with relative positions: each answer where its first row went.

        The path is that of the commands, as the proprio of such a row is no place.
        """
        asked = self.asked_at[self.asked_at < len(self.rows)]
        chunks = self.chunks[: len(asked)].copy()
        chunks[..., :3] += (self.rows[asked, :3] - chunks[:, 0, :3])[:, None]
        return replace(self, chunks=chunks, path=self.rows)


def save_trace(path: Path, trace: Trace) -> None:
    """Writes an npz file that appears under `path` only when it is complete."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        episode=np.array([trace.episode.task_id, trace.episode.init_state, trace.episode.seed]),
        success=np.array(trace.success),
        rows=trace.rows,
        chunks=trace.chunks,
        asked_at=trace.asked_at,
        path=trace.path,
    )
    write_bytes(path, file.getvalue())


def load_trace(path: Path) -> Trace:
    """Inverse of `save_trace`."""
    with np.load(str(path)) as file:
        return Trace(
            episode=Episode(*(int(number) for number in file["episode"])),
            success=bool(file["success"]),
            rows=file["rows"],
            chunks=file["chunks"],
            asked_at=file["asked_at"],
            path=file["path"],
        )
