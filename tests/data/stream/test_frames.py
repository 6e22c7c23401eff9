"""Recorded frames in both forms: four of each episode, as recorded and as trained on."""

import dataclasses

import numpy as np

from data.spec import Columns
from data.stream.pipeline import recorded_frames
from data.trajectory import Source
from tests.data.fakes import SHAPE, FakeReader, tokenize

SIZES = {name: value for name, value in SHAPE.items() if name != "batch_size"}


def frames(count, **changes):
    reader = FakeReader([2, 1], frames=9)
    sizes = SIZES | changes
    return list(recorded_frames(Source(reader, 1.0), count=count, tokenize=tokenize, **sizes))


def test_they_are_spread_over_episodes():
    spread = frames(10)
    numbers = [int(frame.images[0][0, 0, 0]) for frame in spread]
    assert numbers == [0, 2, 4, 7, 0, 2, 4, 7, 0, 2]
    assert [int(frame.images[0][0, 0, 1]) for frame in spread] == [0] * 8 + [1] * 2
    assert len({frame.name for frame in spread}) == 10
    assert len(frames(100)) == 12


def test_both_forms_are_of_one_frame():
    (frame,) = frames(1, image_size=4)
    assert frame.images[0].shape == (8, 8, 3)
    assert frame.batch["images"].shape == (1, 3, 4, 4, 3)
    np.testing.assert_array_equal(frame.batch["images"][0, 0, 0, 0], frame.images[0][0, 0])
    np.testing.assert_array_equal(frame.batch["input_ids"], tokenize([frame.instruction]))
    assert frame.batch["view_mask"][0].sum() == len(frame.images)


def test_a_frame_of_joints_is_as_wide_as_its_row():
    reader = FakeReader([1], frames=9)
    changes = {"arms": (), "joints": (Columns("q", 0, 14),), "rotation_layout": "none"}
    reader.spec = dataclasses.replace(reader.spec, **changes)
    (frame,) = recorded_frames(Source(reader, 1.0), count=1, tokenize=tokenize, **SIZES)
    assert frame.batch["proprio"].shape == (1, 14)
    assert frame.batch["actions"].shape == (1, SIZES["num_actions"], 14)
    assert frames(1)[0].batch["proprio"].shape == (1, 20)
