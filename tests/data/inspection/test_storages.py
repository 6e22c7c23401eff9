"""The doctor reads every storage format and a joint space."""

import math

import pytest

from data.inspection.checks import examine
from data.inspection.scan import scan
from data.sources import open_reader
from data.stream.windows import num_samples
from data.trajectory import Trajectory
from tests.data.storages import FRAMES, STORAGES


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_is_measured(storage, tmp_path):
    reader = open_reader(STORAGES[storage](tmp_path), tmp_path)
    report = scan(reader, num_actions=6)
    assert [episode.num_frames for episode in report.episodes] == list(FRAMES)
    trajectories = [t for part in range(len(reader.episodes_per_part)) for t in reader.read(part)]
    samples = [num_samples(t, reader.spec, 6) for t in trajectories if isinstance(t, Trajectory)]
    assert [episode.samples for episode in report.episodes] == samples
    for episode in report.episodes:
        assert {view.sizes for view in episode.views} == {((32, 32),)}
        encoded = storage in ("hdf5", "scattered-jpeg", "bridge-raw")
        assert all(math.isnan(view.encoded_bytes) != encoded for view in episode.views)
        clocks = [arm.clock_key for arm in reader.spec.arms if arm.clock_key is not None]
        assert (episode.clock is not None) == bool(clocks)
        assert len(episode.hands) == len(reader.spec.arms)
    blank = [f for f in examine([report], max_bad_episodes=0) if f.check.name == "blank view"]
    assert [f.severity for f in blank] == ["error"], "the generated images are of one colour"
