"""An opened source -> its SourceReport."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.faults import DATA_ERRORS, BadEpisodeError
from data.inspection import geometry
from data.inspection.camera import Change, changes, fit_cameras
from data.inspection.channels import channel_names, even_places
from data.inspection.measure import measure
from data.inspection.reports import EpisodeReport, Sheet, SourceReport
from data.inspection.views import SIZE, decode, undecodable
from data.sampling import permutation
from data.spec import DatasetSpec
from data.trajectory import Reader, Trajectory

SHEETS = 4  # episodes to look at
SHEET_PICTURES = 8
SHEET_SIZE = 192  # px
CAMERA_EPISODES = 32
CAMERA_PICTURES = 40  # of one episode

Progress = Callable[[int, int, int], None]  # (episodes done, in all, of these good)


def scan(
    reader: Reader,
    *,
    num_actions: int,
    episodes: int = 0,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> SourceReport:
    """Read and measure a source.

    Args:
        reader: an opened source.
        num_actions: of a sample; the static filter looks at the first of them.
        episodes: so many are drawn at random; 0 looks at all.
        seed: decides which are drawn, and which are shown.
        on_progress: called after every episode.
    """
    spec = reader.spec
    order = permutation(sum(reader.episodes_per_part), seed, spec.name, "inspection").tolist()
    chosen = sorted(order[:episodes] if episodes else order)
    album = _Album(spec, {number: place for place, number in enumerate(order)})
    reports: list[EpisodeReport] = []
    bad: list[BadEpisodeError] = []
    left_out: list[BadEpisodeError] = []
    for done, (number, found) in enumerate(_read(reader, chosen), start=1):
        if isinstance(found, BadEpisodeError):
            (left_out if found.left_out else bad).append(found)
        else:
            report = measure(found, spec, num_actions)
            fault = report.picture_fault or album.add(number, found)
            reports.append(dataclasses.replace(report, picture_fault=fault))
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
    )


def _read(
    reader: Reader, chosen: Sequence[int]
) -> Iterator[tuple[int, Trajectory | BadEpisodeError]]:
    """The chosen episodes, numbers in rising order, from the parts that hold them."""
    wanted = set(chosen)
    first = 0
    for part, count in enumerate(reader.episodes_per_part):
        end = bisect.bisect_left(chosen, first + count)
        if end and chosen[end - 1] >= first:
            for number, found in enumerate(reader.read(part), start=first):
                if number in wanted:
                    yield number, found
                if number == chosen[end - 1]:
                    break
        first += count


@dataclass
class _Album:
    """Pictures of the episodes that come first in a random order."""

    spec: DatasetSpec
    place_of: dict[int, int]
    sheets: dict[int, Sheet] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def add(self, number: int, trajectory: Trajectory) -> BadEpisodeError | None:
        """Keeps what is wanted of an episode; what is returned says why that cannot be."""
        place = self.place_of[number]
        try:
            # the next ones stand in where the first are bad
            if place < 2 * SHEETS:
                self.sheets[place] = _sheet(trajectory, self.spec)
            if place < CAMERA_EPISODES and self.spec.arms and trajectory.images:
                frames = even_places(len(trajectory.poses), CAMERA_PICTURES)
                shown = _shown(trajectory, self.spec, frames, 1, SIZE)[0]
                hands = geometry.hand_rows(trajectory, self.spec)
                self.changes += changes(shown, hands[:, frames, :3], place)
        except DATA_ERRORS as error:
            return undecodable(trajectory, str(error))
        return None


def _sheet(trajectory: Trajectory, spec: DatasetSpec) -> Sheet:
    frames = even_places(len(trajectory.poses), SHEET_PICTURES)
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
