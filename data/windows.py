"""Trajectory -> training samples, as X-VLA's reader makes them.

A sample at frame i looks `window_s` ahead, or to the last frame if that is nearer, and cuts this
stretch into `num_actions` equal steps. Its num_actions + 1 points, both ends included, are linear
blends of the neighbouring frames, in *every* channel: the 6-D rotation is not renormalised and the
gripper becomes fractional at a switch. Point 0 is the proprio, the others are the actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.spec import DatasetSpec
from data.trajectory import Trajectory

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class EpisodeSamples:
    """The n accepted samples of one episode; views stay encoded."""

    dataset: str
    episode: str
    instruction: str
    frames: NDArray[np.int64]  # [n]
    proprio: Float32  # [n, D]
    actions: Float32  # [n, T, D]
    images: tuple[NDArray[np.object_], ...]  # per view [n] encoded bytes

    def __len__(self) -> int:
        return len(self.frames)


def episode_samples(trajectory: Trajectory, spec: DatasetSpec, num_actions: int) -> EpisodeSamples:
    """All samples of `trajectory` that move, in frame order."""
    positions = window_positions(
        len(trajectory.poses),
        window_frames=spec.window_s * spec.rate_hz,
        index_margin=spec.index_margin,
        num_actions=num_actions,
    )
    points = interpolate(trajectory.poses, positions)
    frames = np.flatnonzero(moves(points, spec.static_epsilon))
    proprio, actions = split_points(points[frames], spec.delta_idx, spec.mask_proprio_idx)
    return EpisodeSamples(
        dataset=trajectory.dataset,
        episode=trajectory.episode,
        instruction=trajectory.instruction,
        frames=frames,
        proprio=proprio,
        actions=actions,
        images=tuple(view[frames] for view in trajectory.images),
    )


def window_positions(
    num_frames: int, *, window_frames: float, index_margin: int, num_actions: int
) -> Float64:
    """Positions of the points of every candidate sample, in frames: float64[n, num_actions + 1].

    The candidates are the frames 0 .. num_frames - 1 - index_margin.
    """
    starts = np.arange(max(num_frames - index_margin, 0), dtype=np.float64)
    spans = np.minimum(window_frames, num_frames - 1 - starts)
    steps = np.arange(num_actions + 1) / num_actions
    return starts[:, None] + steps * spans[:, None]


def interpolate(rows: Float64, positions: Float64) -> Float32:
    """Linear blends of `rows` [T, D] at `positions` [n, P] in 0 .. T - 1 -> float32[n, P, D]."""
    before = np.clip(np.floor(positions).astype(np.int64), 0, max(len(rows) - 2, 0))
    weight = (positions - before)[..., None]
    after = np.minimum(before + 1, len(rows) - 1)
    return ((1.0 - weight) * rows[before] + weight * rows[after]).astype(np.float32)


def moves(points: Float32, epsilon: float) -> NDArray[np.bool_]:
    """Which samples [n, P, D] change by `epsilon` or more, in any channel, in their first step."""
    return np.abs(points[:, 1] - points[:, 0]).max(axis=-1) >= epsilon


def split_points(
    points: Float32, delta_idx: tuple[int, ...], mask_proprio_idx: tuple[int, ...]
) -> tuple[Float32, Float32]:
    """Points [..., P, D] -> proprio [..., D], actions [..., P - 1, D].

    The channels `delta_idx` of the actions become relative to the proprio (to the start of the
    chunk, not step to step); only then are the channels `mask_proprio_idx` of the proprio zeroed.
    """
    if points.shape[-2] < 2:
        raise ValueError(f"a window has at least two points, got {points.shape}")
    proprio, actions = points[..., 0, :].copy(), points[..., 1:, :].copy()
    delta = sorted(set(delta_idx))
    actions[..., delta] -= proprio[..., None, delta]
    proprio[..., list(mask_proprio_idx)] = 0.0
    return proprio, actions
