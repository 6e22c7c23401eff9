"""Readers and tokenizer without files or TensorFlow, for the tests of the stream."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from data.faults import Faults
from data.rows.table import dataset
from data.stream.pipeline import batches
from data.trajectory import Source, Trajectory

SHAPE: dict[str, Any] = {"batch_size": 6, "num_actions": 30, "num_views": 3, "image_size": 8}


def png(colour, size=8):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def tokenize(texts):
    return np.array([[len(text), sum(map(ord, text)) % 1000] for text in texts], np.int32)


class FakeReader:
    """Parts of episodes of `frames` frames that move steadily; counts what is read.

    The image of a frame has its red channel equal to the frame's number; channel 0 of the pose is
    1000 * part + 100 * episode + frame.
    """

    def __init__(self, parts, *, name="libero_demos", frames=6, still=False):
        row = dataset(name)
        self.spec = dataclasses.replace(
            row,
            window_s=1.0,
            rate_hz=5.0,
            index_margin=1,
            delta_idx=(),
            mask_proprio_idx=(),
            augment="none",
        )
        self.episodes_per_part = tuple(parts)
        self.frames = frames
        self.still = still
        self.parts_read = []

    def read(self, part):
        self.parts_read.append(part)
        for episode in range(self.episodes_per_part[part]):
            poses = np.zeros((self.frames, 20))
            if not self.still:
                poses[:, 0] = 1000 * part + 100 * episode + np.arange(self.frames)
            images = np.array([png((frame, part, 0)) for frame in range(self.frames)], object)
            yield Trajectory(
                dataset=self.spec.name,
                episode=f"part{part}#{episode}",
                instruction=f"do {self.spec.name} {part}",
                poses=poses,
                images=tuple(images.copy() for _ in self.spec.views),
            )


def good(reader, part) -> list[Trajectory]:
    """The trajectories of a part, none of which may be bad."""
    return list(Faults(0).sift(reader.read(part)))


class BrokenReader(FakeReader):
    """The second view of every image of the first `broken` episodes cannot be decoded."""

    broken = 1

    def read(self, part):
        for trajectory in super().read(part):
            if part < self.broken:
                cut = np.array([png((0, 0, 0))[:20]] * self.frames, object)
                images = (trajectory.images[0], cut)
                trajectory = dataclasses.replace(trajectory, images=images)
            yield trajectory


FIELDS = ("images", "view_mask", "input_ids", "domain_id", "proprio", "actions")


def two_sources():
    return [
        Source(FakeReader((3, 1, 2), name="libero_demos"), 3.0),
        Source(FakeReader((2, 2), name="bridge_dataset", frames=9), 1.0),
    ]


def run(count, **options):
    options = {**SHAPE, "seed": 0, "shuffle_buffer": 12, "tokenize": tokenize, **options}
    with batches(options.pop("sources", None) or two_sources(), **options) as stream:
        return [next(stream) for _ in range(count)], stream.position


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(a[field], b[field], err_msg=field)
