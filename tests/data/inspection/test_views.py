"""The doctor condemns the images that training refuses, and no others; what it calls frozen."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

import data.readers.videos
from data.faults import BadEpisodeError, TooManyBadEpisodesError
from data.inspection.scan import scan
from data.inspection.views import is_complete
from data.sources import open_reader
from data.stream.pipeline import one_pass
from data.trajectory import Source, Trajectory
from tests.data.fakes import tokenize
from tests.data.inspection.planted import change
from tests.data.inspection.robots import Robot, episode, png, row
from tests.data.small_sets import encoded, image, small
from tests.data.storages import STORAGES, write_hdf5

NUM_ACTIONS = 6
CUT = encoded(image(0, 0, 0))[:40]


class Edited:
    """A reader whose images are changed on the way."""

    def __init__(self, reader, edit):
        self._reader, self._edit = reader, edit
        self.spec, self.episodes_per_part = reader.spec, reader.episodes_per_part

    def read(self, part):
        for item in self._reader.read(part):
            good = isinstance(item, Trajectory)
            yield self._edit(item, self.spec) if good else item


def spoilt(frame_of):
    """One image of the last view is cut short: that of frame `frame_of` (spec, frames)."""

    def edit(trajectory, spec):
        views = [np.empty(len(view), object) for view in trajectory.images]
        for made, view in zip(views, trajectory.images, strict=True):
            made[:] = [view[i] for i in range(len(view))]
        views[-1][frame_of(spec, len(trajectory.poses)) + spec.picture_offset] = CUT
        return dataclasses.replace(trajectory, images=tuple(views))

    return edit


EDITS = {
    "as recorded": lambda trajectory, _: trajectory,
    "spoilt in the middle": spoilt(lambda _, frames: frames // 2),
    "spoilt where no sample starts": spoilt(lambda _, frames: frames - 1),
}


def trained(reader):
    """True where training takes every sample."""
    sizes: dict[str, Any] = {
        "batch_size": 4,
        "num_actions": NUM_ACTIONS,
        "num_views": 3,
        "image_size": 8,
    }
    try:
        return sum(
            len(batch["actions"])
            for batch in one_pass([Source(reader, 1.0)], **sizes, tokenize=tokenize)
        )
    except (BadEpisodeError, TooManyBadEpisodesError):
        return 0


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_doctor_refuses_what_training_refuses_and_takes_what_it_takes(storage, edit, tmp_path):
    reader = Edited(open_reader(STORAGES[storage](tmp_path), tmp_path), EDITS[edit])
    report = scan(reader, num_actions=NUM_ACTIONS)
    taken = trained(reader)
    assert report.num_samples, "there is something to take"
    assert taken == (0 if report.faults else report.num_samples)
    if edit == "as recorded":
        assert not report.faults


@pytest.mark.parametrize("images", ["as many as frames", "one more"])
def test_a_row_whose_images_come_late_takes_both_lengths(images, tmp_path):
    spec = small("libero")
    assert spec.picture_offset == 1
    reader = open_reader(write_hdf5(tmp_path, spec), tmp_path)

    def cut(trajectory, _):
        drop = images == "as many as frames"
        views = (view.take(np.arange(len(view) - drop)) for view in trajectory.images)
        return dataclasses.replace(trajectory, images=tuple(views))

    edited = Edited(reader, cut)
    report = scan(edited, num_actions=NUM_ACTIONS)
    assert not report.faults
    assert len(report.sheets) == len(report.episodes) == 2
    assert trained(edited) == report.num_samples > 0
    assert all(view.sizes == ((32, 32),) for e in report.episodes for view in e.views)


def test_every_image_is_looked_at_where_it_is_in_memory():
    robot = [episode(n, row(), frames=60) for n in range(2)]

    def cut(e):
        views = [view.copy() for view in e.images]
        views[1][31] = views[1][31][:-30]
        return tuple(views)

    report = scan(Robot(row(), change(robot, 1, images=cut)), num_actions=NUM_ACTIONS)
    (fault,) = report.faults
    assert fault.episode == "e1"
    assert fault.reason.startswith("frame 31, observation.wrist: ")


@pytest.mark.parametrize("images", [0, 3])
def test_images_of_a_video_are_looked_at_as_asked(images, tmp_path, monkeypatch):
    """Decoding them all takes long, so the default takes some; 0 is as strict as training."""
    reader = open_reader(STORAGES["scattered-video"](tmp_path), tmp_path)
    monkeypatch.setattr("data.inspection.scan.SHEETS", 0)
    monkeypatch.setattr("data.inspection.scan.BESIDE_EPISODES", 0)
    seen = []
    genuine = data.readers.videos.VideoImages.__getitem__
    monkeypatch.setattr(
        "data.readers.videos.VideoImages.__getitem__",
        lambda view, index: (seen.append(index), genuine(view, index))[1],
    )
    report = scan(reader, num_actions=NUM_ACTIONS, images=images)
    per_view = [min(images or e.samples, e.samples) for e in report.episodes]
    assert len(seen) == len(reader.spec.views) * sum(per_view)


def clean(number, *, frames=30, side=1, up=True):
    """A hand of 2 `side` px that only rises in a view without noise, two px between images."""
    made = episode(number, row(), frames)
    poses = made.poses.copy()
    poses[:, :2] = (0.4, 0.0)
    poses[:, 2] = 0.1 + 0.3 * np.arange(frames) / frames
    poses[:, 3:9] = (1, 0, 0, 1, 0, 0)
    images = np.empty(frames, object)
    for frame in range(frames):
        shown = np.full((64, 64, 3), 90, np.uint8)
        down = 50 - (frame if up else 0)
        shown[down - side : down + side, 31 : 31 + 2 * side] = (150, 120, 100)
        images[frame] = png(shown)
    return dataclasses.replace(made, poses=poses, images=(images, images[::-1].copy()))


def frozen(episodes, spec=None):
    report = scan(Robot(spec or row(), episodes), num_actions=NUM_ACTIONS)
    return [[view.frozen_frames > 0 for view in e.views] for e in report.episodes]


def test_a_small_hand_that_moves_up_in_a_clean_view_is_not_frozen():
    moving = [clean(n) for n in range(3)]
    assert frozen(moving) == [[False, False]] * 3
    report = scan(Robot(row(), moving), num_actions=NUM_ACTIONS)
    assert not any(view.blank for e in report.episodes for view in e.views)
    assert frozen([clean(n, up=False) for n in range(3)]) == [[True, True]] * 3


def test_a_frozen_view_is_the_only_finding_and_with_the_noise_of_a_codec():
    rng = np.random.default_rng(0)

    def rounded(e):
        first = np.asarray(Image.open(io.BytesIO(e.images[0][0]))).astype(int)
        stopped = np.empty(len(e.poses), object)
        for i in range(len(stopped)):
            noise = rng.integers(-1, 2, first.shape)
            stopped[i] = png(np.clip(first + noise, 0, 255).astype(np.uint8))
        return (stopped, e.images[1])

    assert frozen(change([clean(n) for n in range(2)], 1, images=rounded)) == [
        [False, False],
        [True, False],
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_complete_files_are_known_without_decoding(kind):
    data = encoded(image(1, 1, 1), kind)
    assert is_complete(data)
    assert is_complete(data + b"\0\0\0"), "filled up with zeros, as HDF5 stores it"
    assert not is_complete(data[:-6])
    assert not is_complete(b"")
    broken = data[:45] + bytes([data[45] ^ 255]) + data[46:]
    assert is_complete(broken) is (kind == "JPEG"), "JPEG has no checksums"
