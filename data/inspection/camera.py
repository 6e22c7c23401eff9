"""A camera for drawing the path of a hand over the main view, where a dataset has no calibration.

Between two images the places that change lie where the moving hand is. The centre of the change
is regressed on the position of the hand: an affine camera, good enough for a drawing. How well it
explains episodes that were left out of the fit says whether it may be drawn at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.inspection.reports import Camera, UInt8

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CHANGED = 16  # grey levels
MIN_SHARE, MAX_SHARE = 0.002, 0.35  # of the image: less is noise, more is light or the camera
MIN_STEP = 0.005  # m between the two images
ALONE = 3.0  # an arm explains the change if it moves so many times as far as the others
MIN_PAIRS = 16
FOLDS = 5
ROUNDS = 20
ENOUGH_R2 = 0.5


class Change(NamedTuple):
    """Where the main view changed between two images, and the hand that did it."""

    group: int  # episode
    arm: int
    xyz: Float64  # [3] m, half-way
    centre: Float64  # [2] across, down; in parts of the image


def changes(images: UInt8, xyz: Float64, group: int) -> list[Change]:
    """Changes between neighbours of images [n, S, S, 3] with hands at xyz [arms, n, 3]."""
    noted = []
    size = images.shape[1]
    ways = np.linalg.norm(np.diff(xyz, axis=1), axis=-1)
    grey = images.astype(np.float64).mean(axis=-1)
    for i in range(len(images) - 1):
        arm = int(np.argmax(ways[:, i]))
        others = np.delete(ways[:, i], arm).max(initial=0.0)
        difference = np.abs(grey[i + 1] - grey[i])
        mask = difference > CHANGED
        if ways[arm, i] < max(MIN_STEP, ALONE * others):
            continue
        if not MIN_SHARE <= mask.mean() <= MAX_SHARE:
            continue
        down, across = np.nonzero(mask)
        weights = difference[mask]
        centre = np.array([np.average(across, weights=weights), np.average(down, weights=weights)])
        noted.append(Change(group, arm, xyz[arm, i : i + 2].mean(axis=0), (centre + 0.5) / size))
    return noted


def fit_cameras(noted: Sequence[Change], num_arms: int) -> tuple[Camera, ...]:
    """One camera for each arm with enough changes; its r2 may still be too low to be drawn."""
    cameras = []
    for arm in range(num_arms):
        mine = [change for change in noted if change.arm == arm]
        groups = np.array([change.group for change in mine])
        if len(mine) < MIN_PAIRS or len(np.unique(groups)) < 2:
            continue
        xyz1 = np.array([[*change.xyz, 1.0] for change in mine])
        centres = np.array([change.centre for change in mine])
        matrix, r2 = _robust(xyz1, centres), _held_out_r2(xyz1, centres, groups)
        cameras.append(Camera(arm, matrix, r2, len(mine)))
    return tuple(cameras)


def _robust(xyz1: Float64, centres: Float64) -> Float64:
    """Least squares [2, 4] in which far-off centres count little (Cauchy weights)."""
    weights = np.ones(len(xyz1))
    matrix: Float64 = np.zeros((2, xyz1.shape[1]))
    for _ in range(ROUNDS):
        root = np.sqrt(weights)[:, None]
        solved = np.linalg.lstsq(xyz1 * root, centres * root, rcond=None)[0]
        matrix = np.asarray(solved.T, np.float64)
        off = np.linalg.norm(centres - xyz1 @ matrix.T, axis=1)
        scale = max(1.48 * float(np.median(off)), 1e-6)
        weights = 1 / (1 + (off / (2 * scale)) ** 2)
    return matrix


def _held_out_r2(xyz1: Float64, centres: Float64, groups: Int64) -> float:
    """Share of the variance that cameras fitted to the other episodes explain."""
    episodes = np.unique(groups)
    fold = np.searchsorted(episodes, groups) % min(FOLDS, len(episodes))
    off = np.empty_like(centres)
    for number in np.unique(fold):
        out = fold == number
        off[out] = centres[out] - xyz1[out] @ _robust(xyz1[~out], centres[~out]).T
    spread = centres - centres.mean(axis=0)
    return float(1 - (off**2).sum() / max((spread**2).sum(), 1e-12))
