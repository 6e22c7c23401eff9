"""What the pictures of an episode show: sizes, blank and frozen cameras, views that are copies."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.faults import BadEpisodeError
from data.images import load_picture
from data.inspection.channels import even_places
from data.inspection.reports import UInt8, ViewReport
from data.trajectory import Pictures, Trajectory

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

PICTURES = 16  # of a view in an episode that are decoded
SIZE = 64  # px to which they are brought
# pictures are alike where so many % of the values differ by no more than a codec makes them differ;
# the rest is a few pixels, less than the smallest hand
ALIKE_SHARE = 99.9
ALIKE = 12.0  # grey levels
BLANK = 2.0  # grey levels: standard deviation within a picture
EQUAL = 1.0  # grey levels: mean difference of two views
# a camera is frozen where so many neighbours are alike although a hand moved between them ...
FROZEN_PAIRS = 3
PAIR_M = 0.005
PAIR_RAD = math.radians(3)
# ... and by so much in all
MOVED_M = 0.02
MOVED_RAD = math.radians(10)


def decode(view: Pictures, places: Int64, *, size: int, channel_order: str) -> UInt8:
    """Pictures number `places` as uint8[n, size, size, 3]; a ValueError tells what is wrong."""
    taken = view.take(places)
    shown = [
        load_picture(taken[i], size=size, channel_order=channel_order) for i in range(len(places))
    ]
    return np.stack(shown)


def undecodable(trajectory: Trajectory, reason: str) -> BadEpisodeError:
    """The fault of an episode of which a picture cannot be read."""
    kind = "undecodable_picture"
    return BadEpisodeError(trajectory.dataset, trajectory.episode, kind, reason)


def look(
    view: Pictures, num_frames: int, *, offset: int, channel_order: str, travelled: Float64
) -> tuple[ViewReport, UInt8]:
    """A report on one view, and its decoded pictures uint8[n, SIZE, SIZE, 3].

    Args:
        view: all pictures of the episode.
        num_frames: of the episode.
        offset: picture i + offset belongs to frame i.
        channel_order: of the row.
        travelled: [2, T] way (m) and turn (rad) of the hands up to each frame.
    """
    frames = even_places(num_frames, PICTURES)
    taken = view.take(frames + offset)
    raw = [taken[i] for i in range(len(frames))]
    sizes = tuple(sorted({_size(picture) for picture in raw}))
    lengths = [len(picture) for picture in raw if isinstance(picture, bytes)]
    shown = np.stack([load_picture(p, size=SIZE, channel_order=channel_order) for p in raw])
    blank = bool(shown.std(axis=(1, 2)).max() < BLANK)
    report = ViewReport(
        sizes=sizes,
        encoded_bytes=float(np.mean(lengths)) if lengths else math.nan,
        blank=blank,
        frozen_frames=0 if blank else _frozen(shown, frames, travelled),
    )
    return report, shown


def equal_views(shown: list[UInt8]) -> tuple[tuple[int, int], ...]:
    """Pairs of views whose pictures are the same and not blank."""
    return tuple(
        (one, other)
        for one, other in itertools.combinations(range(len(shown)), 2)
        if shown[one].std(axis=(1, 2)).max() >= BLANK
        and np.abs(shown[one].astype(np.int16) - shown[other]).mean() < EQUAL
    )


def _frozen(shown: UInt8, frames: Int64, travelled: Float64) -> int:
    """Frames of the longest stretch in which pictures stay and hands move."""
    change = np.abs(np.diff(shown.astype(np.int16), axis=0)).reshape(len(shown) - 1, -1)
    still = np.percentile(change, ALIKE_SHARE, axis=1) <= ALIKE if len(shown) > 1 else []
    ways, turns = np.diff(travelled[:, frames], axis=1)
    moves = (ways >= PAIR_M) | (turns >= PAIR_RAD)
    longest, first = 0, 0
    for last, same in enumerate([*still, False]):
        if same:
            continue
        way, turn = ways[first:last].sum(), turns[first:last].sum()
        moved = way >= MOVED_M or turn >= MOVED_RAD
        if moved and moves[first:last].sum() >= FROZEN_PAIRS:
            longest = max(longest, int(frames[last] - frames[first]))
        first = last + 1
    return longest


def _size(picture: bytes | UInt8) -> tuple[int, int]:
    if isinstance(picture, bytes):
        try:
            with Image.open(io.BytesIO(picture)) as opened:
                return opened.height, opened.width
        except OSError as error:
            raise ValueError(f"{len(picture)} bytes that are no picture: {error}") from error
    return picture.shape[0], picture.shape[1]
