import dataclasses

import numpy as np
import pytest

from data.stream import EmptyDatasetError, SourceStream
from tests.data.fakes import FakeReader

# 3 + 1 + 2 episodes of 6 frames, of which the last starts no sample: 15 + 5 + 10 samples
PARTS = (3, 1, 2)
EPOCH = 30


def take(count, *, first=0, seed=0, shuffle_buffer=12, parts=PARTS, known=None, **reader):
    source = FakeReader(parts, **reader)
    stream = SourceStream(
        source,
        seed=seed,
        shuffle_buffer=shuffle_buffer,
        num_actions=30,
        first=first,
        samples_per_part=known,
    )
    try:
        samples = [stream.sample(number) for number in range(first, first + count)]
    finally:
        stream.close()
    found = [(sample.episode.episode, int(sample.episode.frames[sample.row])) for sample in samples]
    return found, source, stream


@pytest.mark.parametrize("shuffle_buffer", [1, 12, 1000])
def test_every_epoch_has_every_sample_once_in_another_order(shuffle_buffer):
    found, _, _ = take(3 * EPOCH, shuffle_buffer=shuffle_buffer)
    epochs = [found[start : start + EPOCH] for start in range(0, 3 * EPOCH, EPOCH)]
    assert all(len(set(epoch)) == EPOCH for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_samples_of_a_block_are_shuffled_over_its_episodes():
    found, _, _ = take(EPOCH, shuffle_buffer=1000)
    assert len({episode for episode, _ in found[:8]}) >= 4


def test_the_seed_decides_the_order():
    assert take(EPOCH, seed=1)[0] == take(EPOCH, seed=1)[0]
    assert take(EPOCH, seed=1)[0] != take(EPOCH, seed=2)[0]


@pytest.mark.parametrize("first", [1, 14, 15, EPOCH - 1, EPOCH, EPOCH + 17, 7 * EPOCH + 3])
@pytest.mark.parametrize("shuffle_buffer", [1, 12, 1000])
@pytest.mark.parametrize("known", [None, [15, 5, 10], [None, 5, None]])
def test_entering_late_gives_the_same_samples(first, shuffle_buffer, known):
    whole, _, _ = take(8 * EPOCH + 20, shuffle_buffer=shuffle_buffer)
    late, _, _ = take(12, first=first, shuffle_buffer=shuffle_buffer, known=known)
    assert late == whole[first : first + 12]


def test_known_counts_spare_reading_the_parts_before():
    _, source, stream = take(1, first=100 * EPOCH + 20, shuffle_buffer=1, known=[15, 5, 10])
    assert len(source.parts_read) <= 2, "the block in use and the next one"
    assert stream.samples_per_part == [15, 5, 10]


def test_passing_over_fetches_no_picture():
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
    stream = SourceStream(reader, seed=0, shuffle_buffer=1, num_actions=30, first=20 * 5)
    stream.sample(20 * 5)
    stream.close()
    assert len(set(reader.parts_read)) >= 21
    assert 2 <= len(fetched) <= 2 * 3, "two views of the block in use and those read ahead"


def test_a_small_dataset_is_read_once_for_all_epochs():
    _, source, _ = take(10 * EPOCH, shuffle_buffer=1000)
    assert sorted(source.parts_read) == [0, 1, 2]


def test_parts_without_samples_are_passed_over():
    found, _, stream = take(40, parts=(0, 1, 0, 2), shuffle_buffer=1)
    assert len(set(found[:15])) == len(set(found[15:30])) == 15
    assert stream.samples_per_part == [0, 5, 0, 10]


@pytest.mark.parametrize("reader", [{"still": True}, {"frames": 1}, {"parts": (0, 0)}])
def test_a_dataset_without_samples_is_an_error(reader):
    with pytest.raises(
        EmptyDatasetError, match=r"'libero_demos' yields no sample from \d episodes"
    ):
        take(1, **reader)


def test_data_that_changed_since_the_position_was_saved_are_an_error():
    with pytest.raises(ValueError, match="has 15 samples, but had 14"):
        take(EPOCH, known=[14, 5, 10])


def test_an_error_comes_again():
    stream = SourceStream(FakeReader((1,), still=True), seed=0, shuffle_buffer=1, num_actions=30)
    for _ in range(2):
        with pytest.raises(EmptyDatasetError):
            stream.sample(0)
    stream.close()
