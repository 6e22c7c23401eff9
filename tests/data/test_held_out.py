"""Held-out episodes: none is trained on, and all of them are measured on."""

import pytest

from data.sources import SomeEpisodes, evenly_spread, hold_out
from data.stream.pipeline import one_pass
from data.trajectory import Source
from tests.data.fakes import SHAPE, FakeReader, good, tokenize


def _names(reader):
    parts = range(len(reader.episodes_per_part))
    return [trajectory.episode for part in parts for trajectory in good(reader, part)]


def test_numbers_are_spread_evenly():
    assert evenly_spread(1, 9) == {4}
    assert evenly_spread(3, 9) == {1, 4, 7}
    assert evenly_spread(8, 9) == {0, 1, 2, 3, 5, 6, 7, 8}
    assert all(len(evenly_spread(n, 23)) == n for n in range(1, 24))


def test_both_halves_together_are_the_source():
    source = Source(FakeReader([4, 0, 3, 2]), 0.7)
    training, held = hold_out(source, 3)
    assert (training.weight, held.weight) == (0.7, 0.7)
    assert held.reader.episodes_per_part == (1, 1, 1)  # numbers 1, 4 and 7 of nine
    assert _names(held.reader) == ["part0#1", "part2#0", "part3#0"]
    assert training.reader.episodes_per_part == (3, 2, 1)
    assert sorted(_names(training.reader) + _names(held.reader)) == sorted(_names(source.reader))


def test_only_files_with_a_kept_episode_are_read():
    reader = FakeReader([4, 3, 2])
    assert _names(SomeEpisodes(reader, frozenset({5}))) == ["part1#1"]
    assert reader.parts_read == [1]


@pytest.mark.parametrize("count", [0, 9, 10])
def test_something_must_be_left_on_both_sides(count):
    with pytest.raises(ValueError, match=rf"validation\.episodes is {count};.* 1 to 8 of them"):
        hold_out(Source(FakeReader([4, 3, 2]), 1.0), count)


def test_a_stride_takes_every_so_many_samples_of_an_episode():
    source = Source(FakeReader([2], frames=6), 1.0)
    every = list(one_pass([source], **SHAPE, tokenize=tokenize))
    third = list(one_pass([source], **SHAPE, tokenize=tokenize, stride=3))
    frames = [batch["proprio"][:, 0].tolist() for batch in (*every, *third)]
    assert frames == [[0, 1, 2, 3, 4, 100], [101, 102, 103, 104], [0, 3, 100, 103]]
