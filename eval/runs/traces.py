"""Records of a running evaluation: times of the policy's calls, actions of an episode."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.files import FileError, read_arrays, write_bytes
from eval.tasks.spec import Episode

_PERCENTILES = (50, 90, 99)
# name -> (kinds of dtype, axes) of the arrays in a trace's file
_TRACE_ARRAYS = {
    "episode": ("i", 1),
    "success": ("b", 0),
    "rows": ("f", 2),
    "chunks": ("f", 3),
    "asked_at": ("i", 1),
    "path": ("f", 2),
}


@dataclass
class CallLog:
    """Batch sizes and times of a policy's calls, in order.

    Attributes:
        batches: observations in each.
        milliseconds: wall time of each.
        first: True for the first call with a batch size in its process, which may compile.
    """

    batches: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    first: list[bool] = field(default_factory=list)

    def add(self, batch: int, milliseconds: float, first: bool) -> None:
        """Notes one call."""
        self.batches.append(batch)
        self.milliseconds.append(round(milliseconds, 1))
        self.first.append(first)

    def extend(self, batches: list[int], milliseconds: list[float], first: list[bool]) -> None:
        """Notes the calls of another log."""
        self.batches += batches
        self.milliseconds += milliseconds
        self.first += first

    def summary(self, num_workers: int) -> dict[str, Any]:
        """Returns plain values; percentiles and fill are None where nothing was called.

        Batch fill is the share of the simulators whose observation was in the batch, in the mean.
        Percentiles leave out the first calls.
        """
        warm = [m for m, first in zip(self.milliseconds, self.first) if not first]
        p50, p90, p99 = np.percentile(warm, _PERCENTILES).tolist() if warm else (None, None, None)
        calls = len(self.batches)
        return {
            "calls": calls,
            "observations": sum(self.batches),
            "batch_fill": sum(self.batches) / (calls * num_workers) if calls else None,
            "latency_ms": {"p50": p50, "p90": p90, "p99": p99},
            "batches": self.batches,
            "milliseconds": self.milliseconds,
            "first": self.first,
        }


@dataclass(frozen=True)
class Trace:
    """Actions of one episode, enough to repeat and film it.

    Attributes:
        episode: task, initial state and seed.
        success: how it ended.
        rows: actions carried out, float32[n, D].
        chunks: answers of the policy, float32[Q, T, D]; Q is 0 for the scripted expert.
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
        """Returns the trace of a row with relative positions with each answer at its place.

        That is where its first action went. The path becomes that of the commands, as the proprio
        of such a row is no place.
        """
        asked = self.asked_at[self.asked_at < len(self.rows)]
        chunks = self.chunks[: len(asked)].copy()
        # [Q, 3] of commands less [Q, 3] of first predictions, added to all T rows of a chunk
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
    """Reads what `save_trace` wrote.

    Raises:
        FileError: the file does not hold the arrays of a trace, or they do not fit each other.
    """
    arrays = read_arrays(path, _TRACE_ARRAYS)
    episode, rows, chunks, asked_at = (
        arrays[name] for name in ("episode", "rows", "chunks", "asked_at")
    )
    queries, horizon, width = chunks.shape
    if len(episode) != 3 or len(asked_at) != queries or (asked_at < 0).any():
        raise FileError(f"{path}: an episode has 3 numbers and each chunk the step of its query")
    if queries and not (horizon and width == rows.shape[1]):
        raise FileError(
            f"{path}: chunks are {list(chunks.shape)}, rows {list(rows.shape)}; allowed are chunks "
            "of at least one row, of the same width"
        )
    return Trace(
        episode=Episode(*(int(number) for number in episode)),
        success=bool(arrays["success"]),
        rows=rows,
        chunks=chunks,
        asked_at=asked_at,
        path=arrays["path"],
    )
