"""Features of records are read by stepping over all others."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from data.counting.records import DamagedRecordError, scan
from data.faults import Faults
from data.parts import EpisodeFilter
from data.readers.built import BuiltReader
from data.rows.table import dataset
from data.sources import open_reader
from data.trajectory import Trajectory
from tests.data.builds import built

pytestmark = pytest.mark.rlds

BRIDGE = dataclasses.replace(dataset("bridge_dataset"), index_margin=2)
FLAGS, STATE = "steps/is_first", "steps/observation/state"


@pytest.fixture(scope="module")
def file(fixtures):
    (path,) = (fixtures / "bridge_dataset" / "1.0.0").glob("*.tfrecord-*")
    return path


class CountingFile(io.BytesIO):
    """A file in memory that counts the bytes read."""

    taken = 0

    def read(self, size=-1):
        content = super().read(size)
        self.taken += len(content)
        return content


def features(serialised):
    return tf.train.Example.FromString(serialised).features.feature


def test_the_features_are_those_that_tensorflow_reads(file):
    content = file.read_bytes()
    ours = list(scan(io.BytesIO(content), len(content), (FLAGS, STATE)))
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
    assert len(ours) == len(records) == 25
    for some, record in zip(ours, records, strict=True):
        every = features(record)
        assert {FLAGS, STATE} < set(every)
        assert dict(features(some)) == {key: every[key] for key in (FLAGS, STATE)}


def test_images_are_stepped_over(file):
    content = CountingFile(file.read_bytes())
    size = file.stat().st_size
    assert len(list(scan(content, size, (FLAGS,)))) == 25
    assert content.taken < size / 10


def test_a_file_that_is_cut_off_ends_with_an_error(file):
    size = file.stat().st_size - 5
    *good, last = scan(io.BytesIO(file.read_bytes()[:size]), size, (FLAGS,))
    assert len(good) == 24
    assert isinstance(last, DamagedRecordError)
    assert "ends within the record" in str(last)


def test_a_damaged_record_leaves_the_others(file):
    content = bytearray(file.read_bytes())
    content[12] ^= 0x07  # the wire type of the first field
    bad, *others = scan(io.BytesIO(bytes(content)), len(content), (FLAGS,))
    assert isinstance(bad, DamagedRecordError)
    assert len(others) == 24
    assert all(isinstance(record, bytes) for record in others)


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_end_in_an_error_or_a_record(file, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(file.read_bytes()[:200_000])  # a record, and a part of the second
    _, cut = scan(io.BytesIO(bytes(content)), len(content), (FLAGS, STATE))
    for place in rng.integers(12, 400, 8):
        content[place] = rng.integers(256)
    hit, last = scan(io.BytesIO(bytes(content)), len(content), (FLAGS, STATE))
    assert isinstance(hit, bytes | DamagedRecordError)
    assert str(last) == str(cut)


def test_a_set_and_its_copy_have_as_many_frames(fixtures, tmp_path):
    reader = open_reader(BRIDGE, fixtures)
    built(BRIDGE, fixtures, tmp_path)
    copy = open_reader(BRIDGE, tmp_path)
    assert isinstance(copy, BuiltReader)
    trajectories = [t for part in range(len(reader.episodes_per_part)) for t in reader.read(part)]
    assert all(isinstance(t, Trajectory) for t in trajectories)
    assert frames_by_part(reader) == frames_by_part(copy) == 25 * 10


def test_episodes_that_the_row_leaves_out_are_not_counted(fixtures):
    pattern = "/traj0.*"
    kept = EpisodeFilter(key="episode_metadata.file_path", pattern=pattern)
    reader: Any = open_reader(dataclasses.replace(BRIDGE, keep_episodes=(kept,)), fixtures)
    read = list(Faults(0).sift(reader.read(0)))
    assert frames_by_part(reader) == sum(len(t.poses) for t in read)
    other: Any = open_reader(BRIDGE, fixtures)
    assert reader.frames_key != other.frames_key


def frames_by_part(reader: Any) -> int:
    return sum(map(reader.count_frames, range(len(reader.episodes_per_part))))
