import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import data.stream.stream
from data.faults import BadEpisodeError, Faults, TooManyBadEpisodesError
from data.stream.stream import BEGINNING, Counts, EmptyDatasetError, SourceStream, StreamShape
from tests.data.fakes import FakeReader

# 3 + 1 + 2 episodes of 6 frames, of which the last starts no sample: 15 + 5 + 10 samples
PARTS = (3, 1, 2)
EPOCH = 30


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A block of 20 episodes would always be all of these datasets."""
    monkeypatch.setattr(data.stream.stream, "MIN_EPISODES", 1)


def open_stream(
    source, pool, *, seed=0, shuffle_buffer=12, lane=0, lanes=1, faults=None, **options
):
    shape = StreamShape(seed, lanes, 30, shuffle_buffer, lanes)
    counts = Counts(len(source.episodes_per_part))
    faults = faults or Faults(0)
    return SourceStream(source, shape, lane, pool=pool, faults=faults, counts=counts, **options)


def take(count, *, first=0, seed=0, shuffle_buffer=12, parts=PARTS, cursor=BEGINNING, **reader):
    source = FakeReader(parts, **reader)
    with ThreadPoolExecutor(2) as pool:
        stream = open_stream(
            source, pool, seed=seed, shuffle_buffer=shuffle_buffer, first=first, cursor=cursor
        )
        samples = [stream.block(n).sample(n) for n in range(first, first + count)]
    return [name_of(sample) for sample in samples], source, stream


def name_of(sample):
    return sample.episode.episode, int(sample.episode.frames[sample.row])


@pytest.mark.parametrize("shuffle_buffer", [1, 12, 1000])
def test_every_epoch_has_every_sample_once_in_another_order(shuffle_buffer):
    names, _, _ = take(3 * EPOCH, shuffle_buffer=shuffle_buffer)
    epochs = [names[start : start + EPOCH] for start in range(0, 3 * EPOCH, EPOCH)]
    assert all(len(set(epoch)) == EPOCH for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_samples_of_a_block_are_shuffled_over_its_episodes():
    names, _, _ = take(EPOCH, shuffle_buffer=1000)
    assert len({episode for episode, _ in names[:8]}) >= 4


def test_the_seed_decides_the_order():
    assert take(EPOCH, seed=1)[0] == take(EPOCH, seed=1)[0]
    assert take(EPOCH, seed=1)[0] != take(EPOCH, seed=2)[0]


@pytest.mark.parametrize("first", [1, 14, 15, EPOCH - 1, EPOCH, EPOCH + 17, 7 * EPOCH + 3])
@pytest.mark.parametrize("shuffle_buffer", [1, 12, 1000])
def test_entering_late_gives_the_same_samples(first, shuffle_buffer):
    names, _, _ = take(8 * EPOCH + 20, shuffle_buffer=shuffle_buffer)
    late, _, _ = take(12, first=first, shuffle_buffer=shuffle_buffer)
    assert late == names[first : first + 12]
    _, _, before = take(first, shuffle_buffer=shuffle_buffer)
    late, _, _ = take(12, first=first, shuffle_buffer=shuffle_buffer, cursor=before.cursor)
    assert late == names[first : first + 12]


def test_a_cursor_spares_reading_the_parts_before():
    _, _, before = take(100 * EPOCH + 20, shuffle_buffer=1)
    assert before.cursor.epoch == 100
    _, source, _ = take(1, first=100 * EPOCH + 20, shuffle_buffer=1, cursor=before.cursor)
    assert len(source.parts_read) <= 4, "the block passed over, the one in use, and the next"


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_lanes_share_an_epoch_and_none_reads_what_another_does(lanes):
    parts, per_epoch = (1,) * 9, 45
    read = []
    names = []
    for lane in range(lanes):
        source = FakeReader(parts)
        with ThreadPoolExecutor(1) as pool:
            stream = open_stream(source, pool, shuffle_buffer=1, lane=lane, lanes=lanes)
            mine, number = [], 0
            while stream.block(number).cursor.epoch == 0:
                mine.append(name_of(stream.block(number).sample(number)))
                number += 1
        names += mine
        read.append({name for name, _ in mine})
    assert len(names) == len(set(names)) == per_epoch
    assert sum(map(len, read)) == len(parts), "each part by one lane"
    assert max(map(len, read)) - min(map(len, read)) <= 1


def test_more_lanes_than_parts_take_turns():
    lanes = []
    for lane in range(4):
        source = FakeReader((1,))
        with ThreadPoolExecutor(1) as pool:
            stream = open_stream(source, pool, shuffle_buffer=1, lane=lane, lanes=4)
            epochs = [stream.block(5 * n).cursor.epoch for n in range(6)]
        lanes.append(epochs)
    every = sorted(epoch for epochs in lanes for epoch in epochs)
    assert len(set(every)) == len(every), "an epoch of one part belongs to one lane"


def test_a_block_has_samples_of_at_least_twenty_episodes(monkeypatch):
    monkeypatch.setattr(data.stream.stream, "MIN_EPISODES", 20)
    source = FakeReader((1,) * 50)
    with ThreadPoolExecutor(1) as pool:
        stream = open_stream(source, pool, shuffle_buffer=1)
        block = stream.block(0)
    assert len(block.episodes) == 20
    first = {name_of(block.sample(number))[0] for number in range(40)}
    assert len(first) > 15, "samples of all episodes in random order"


def test_passing_over_fetches_no_image():
    class Watched(np.ndarray):
        def take(self, indices, *args, **kwargs):
            fetched.append(len(indices))
            return super().take(indices)

    class WatchedReader(FakeReader):
        def read(self, part):
            for trajectory in super().read(part):
                views = tuple(np.asarray(view).view(Watched) for view in trajectory.images)
                yield dataclasses.replace(trajectory, images=views)

    fetched = []
    reader = WatchedReader((1,) * 40)
    with ThreadPoolExecutor(1) as pool:
        stream = open_stream(reader, pool, shuffle_buffer=1, first=20 * 5)
        stream.block(20 * 5)
    assert len(set(reader.parts_read)) >= 21
    assert 2 <= len(fetched) <= 2 * 3, "two views of the block in use and those read ahead"


def test_a_small_dataset_is_read_once_for_all_epochs():
    _, source, _ = take(10 * EPOCH, shuffle_buffer=1000)
    assert sorted(source.parts_read) == [0, 1, 2]


def test_parts_without_samples_are_passed_over():
    names, _, _ = take(40, parts=(0, 1, 0, 2), shuffle_buffer=1)
    assert len(set(names[:15])) == len(set(names[15:30])) == 15


@pytest.mark.parametrize("reader", [{"still": True}, {"frames": 1}, {"parts": (0, 0)}])
def test_a_dataset_without_samples_is_an_error(reader):
    with pytest.raises(
        EmptyDatasetError, match=r"'libero_demos' yields no sample from \d episodes"
    ):
        take(1, **reader)


def test_data_that_changed_since_the_position_was_saved_are_an_error():
    _, _, before = take(EPOCH + 3)
    with pytest.raises(ValueError, match="has 24 samples where there were 15"):
        take(1, first=EPOCH + 3, cursor=before.cursor, frames=5, shuffle_buffer=1000)


def test_an_error_comes_again():
    with ThreadPoolExecutor(1) as pool:
        stream = open_stream(FakeReader((1,), still=True), pool)
        for _ in range(2):
            with pytest.raises(EmptyDatasetError):
                stream.block(0)


class DamagedReader(FakeReader):
    """The second episode of part 0 cannot be read."""

    def read(self, part):
        for number, trajectory in enumerate(super().read(part)):
            bad = part == 0 and number == 1
            yield (
                BadEpisodeError(self.spec.name, trajectory.episode, "not_finite", "frame 1")
                if bad
                else trajectory
            )


def test_bad_episodes_are_left_out_and_counted_once():
    with ThreadPoolExecutor(1) as pool:
        faults = Faults(1)
        stream = open_stream(DamagedReader(PARTS), pool, faults=faults)
        every_name = [name_of(stream.block(n).sample(n)) for n in range(3 * 25)]
    for epoch in range(3):
        names = every_name[25 * epoch : 25 * (epoch + 1)]
        assert len(set(names)) == 25
        assert not [name for name, _ in names if name == "part0#1"]
    assert faults.counts == {"libero_demos": {"not_finite": 1}}


def test_one_bad_episode_more_than_allowed_is_an_error_that_names_it():
    with ThreadPoolExecutor(1) as pool:
        stream = open_stream(DamagedReader(PARTS), pool)
        with pytest.raises(TooManyBadEpisodesError, match="episode part0#1: frame 1") as error:
            [stream.block(number) for number in range(30)]
        assert "allowed: 0 (max_bad_episodes)" in str(error.value)
