"""An opened source -> its SourceReport."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.faults import DATA_ERRORS, BadEpisodeError
from data.inspection import geometry
from data.inspection.beside import Beside, read_chosen
from data.inspection.camera import Change, changes, fit_cameras
from data.inspection.channels import channel_names, even_places
from data.inspection.companion import Companion
from data.inspection.measure import measure
from data.inspection.reports import EpisodeReport, Sheet, SourceReport
from data.inspection.views import PICTURES, SIZE, decode, pictured_frames
from data.sampling import permutation
from data.spec import DatasetSpec
from data.trajectory import Reader, Trajectory

SHEETS = 4  # episodes to look at
SHEET_PICTURES = 8
SHEET_SIZE = 192  # px
CAMERA_EPISODES = 32
BESIDE_EPISODES = 32  # compared with their images and with what else is recorded
CAMERA_PICTURES = 40  # of one episode

Progress = Callable[[int, int, int], None]  # (episodes done, in all, of these good)


def scan(
    reader: Reader,
    *,
    num_actions: int,
    episodes: int = 0,
    seed: int = 0,
    images: int = PICTURES,
    companion: Companion | None = None,
    on_progress: Progress | None = None,
) -> SourceReport:
    """Read and measure a source.

    Args:
        reader: an opened source.
        num_actions: of a sample; the static filter looks at the first of them.
        episodes: so many are drawn at random; 0 looks at all.
        seed: decides which are drawn, and which are shown.
        images: of each view and episode that are decoded; 0: of every frame that starts a sample.
        companion: what is recorded beside the row (data.inspection.companion).
        on_progress: called after every episode.
    """
    spec = reader.spec
    order = permutation(sum(reader.episodes_per_part), seed, spec.name, "inspection").tolist()
    chosen = sorted(order[:episodes] if episodes else order)
    companion = companion or Companion()
    place_of = {number: place for place, number in enumerate(order)}
    album = _Album(spec, place_of)
    compared = [number for number in chosen if place_of[number] < BESIDE_EPISODES]
    beside = Beside(spec, companion, compared)
    reports: list[EpisodeReport] = []
    bad: list[BadEpisodeError] = []
    left_out: list[BadEpisodeError] = []
    for done, (number, found) in enumerate(read_chosen(reader, chosen), start=1):
        if isinstance(found, BadEpisodeError):
            (left_out if found.left_out else bad).append(found)
        else:
            report = measure(found, spec, num_actions, images)
            reports.append(report)
            if report.picture_fault is None:
                album.add(number, found)
                beside.add(number, found)
        if on_progress is not None:
            on_progress(done, len(chosen), done - len(bad))
    return SourceReport(
        spec=spec,
        episodes_per_part=tuple(reader.episodes_per_part),
        looked_at=len(reports) + len(bad) + len(left_out),
        episodes=tuple(reports),
        bad=tuple(bad),
        sheets=tuple(album.sheets[place] for place in sorted(album.sheets))[:SHEETS],
        cameras=fit_cameras(album.changes, len(spec.arms)),
        left_out=tuple(left_out),
        joint_names=companion.joint_names,
        beside=beside.report(),
    )


@dataclass
class _Album:
    """Pictures of the episodes that come first in a random order."""

    spec: DatasetSpec
    place_of: dict[int, int]
    sheets: dict[int, Sheet] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def add(self, number: int, trajectory: Trajectory) -> None:
        """Keeps what is wanted of an episode.

        Frames that start no sample are shown too: an image that fails there is no fault, and the
        episode is only not shown.
        """
        place = self.place_of[number]
        frames = pictured_frames(trajectory, self.spec)
        if not len(frames):
            return
        # the next ones stand in where the first are bad
        if place < 2 * SHEETS:
            with contextlib.suppress(*DATA_ERRORS):
                self.sheets[place] = _sheet(trajectory, self.spec, frames)
        if place < CAMERA_EPISODES and self.spec.arms:
            some = frames[even_places(len(frames), CAMERA_PICTURES)]
            with contextlib.suppress(*DATA_ERRORS):
                shown = _shown(trajectory, self.spec, some, 1, SIZE)[0]
                hands = geometry.hand_rows(trajectory, self.spec)
                self.changes += changes(shown, hands[:, some, :3], place)


def _sheet(trajectory: Trajectory, spec: DatasetSpec, pictured: NDArray[np.int64]) -> Sheet:
    frames = pictured[even_places(len(pictured), SHEET_PICTURES)]
    hands = geometry.hand_rows(trajectory, spec)
    rotations = geometry.matrices(geometry.rotation_columns(hands, spec))
    names = tuple(name for name, _ in channel_names(spec))
    return Sheet(
        episode=trajectory.episode,
        instruction=trajectory.instruction,
        frames=frames,
        pictures=tuple(_shown(trajectory, spec, frames, len(spec.views), SHEET_SIZE)),
        hands=hands,
        turned=geometry.angles(rotations, rotations[:, :1]),
        joints=trajectory.poses[:, : len(names)] if spec.joints else None,
        joint_names=names if spec.joints else (),
        rate_hz=spec.rate_hz,
    )


def _shown(
    trajectory: Trajectory, spec: DatasetSpec, frames: np.ndarray, num_views: int, size: int
) -> Sequence[np.ndarray]:
    places = frames + spec.picture_offset
    order = spec.encoded_channel_order
    return [
        decode(view, places, size=size, channel_order=order)
        for view in trajectory.images[:num_views]
    ]
