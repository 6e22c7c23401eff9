import numpy as np
import pytest

from data.sampling import DRAWS_PER_KEY, Mixer, permutation, random_words

WORDS = [7863201575964754853, 17379041819822676374]
ORDER = [5, 7, 6, 1, 0, 2, 4, 3]


def test_words_stay_the_same_for_ever():
    # a change here breaks the resume of every running training
    assert random_words(2, 0, "mixture", 0).tolist() == WORDS
    assert permutation(8, 7, "libero_demos", "samples", 0, 0).tolist() == ORDER


def test_words_depend_on_seed_and_purpose():
    first = random_words(4, 0, "a", 1).tolist()
    assert first == random_words(4, 0, "a", 1).tolist()
    for seed, *purpose in ((1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1")):
        assert first != random_words(4, int(seed), *purpose).tolist()


def test_permutation_has_every_number_once():
    assert sorted(permutation(1000, 3, "x").tolist()) == list(range(1000))


def mixer(weights, seed, batch_size=1, lanes=1):
    return Mixer(weights, seed, batch_size=batch_size, lanes=lanes)


def test_mixer_keeps_the_weights_and_numbers_each_source_in_order():
    sources, numbers = mixer([3.0, 1.0], seed=0).assign(8000)
    assert abs(np.mean(sources == 0) - 0.75) < 0.02
    for source in (0, 1):
        mine = numbers[sources == source]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))


@pytest.mark.parametrize(("batch_size", "lanes"), [(1, 1), (12, 1), (12, 4), (12, 12)])
def test_mixer_numbers_each_source_in_order_within_each_lane(batch_size, lanes):
    sources, numbers = mixer([3.0, 1.0], 0, batch_size, lanes).assign(8000)
    np.testing.assert_array_equal(sources, mixer([3.0, 1.0], 0).assign(8000)[0])
    lane = np.arange(8000) % batch_size // (batch_size // lanes)
    for which in range(lanes):
        for source in (0, 1):
            mine = numbers[(sources == source) & (lane == which)]
            np.testing.assert_array_equal(mine, np.arange(len(mine)))


@pytest.mark.parametrize("lanes", [0, 5, 24])
def test_lanes_must_divide_the_batch(lanes):
    with pytest.raises(ValueError, match=rf"lanes is {lanes}; it must divide batch_size 12"):
        mixer([1.0], 0, 12, lanes)


@pytest.mark.parametrize(("batch_size", "lanes"), [(1, 1), (10, 5)])
def test_mixer_gives_the_same_stream_in_any_pieces_and_from_any_start(batch_size, lanes):
    total = DRAWS_PER_KEY + 500
    weights = [0.2, 0.5, 0.3]
    at_once = mixer(weights, 1, batch_size, lanes).assign(total)
    pieces = mixer(weights, 1, batch_size, lanes)
    parts = [pieces.assign(count) for count in (1, 400, DRAWS_PER_KEY, 99)]
    for i in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), at_once[i])
    for start in (7, DRAWS_PER_KEY, DRAWS_PER_KEY + 9):
        late = mixer(weights, 1, batch_size, lanes)
        late.seek(start)
        before = late.dealt.sum(axis=1)
        np.testing.assert_array_equal(before, np.bincount(at_once[0][:start], minlength=3))
        rest = late.assign(total - start)
        for i in (0, 1):
            np.testing.assert_array_equal(rest[i], at_once[i][start:])


def even(seed, weights, kinds, batch_size=64, lanes=1):
    return Mixer(weights, seed, batch_size=batch_size, lanes=lanes, kinds=kinds)


WEIGHTS, VIEWS = [0.1, 0.3, 0.4, 0.1, 0.1], [3, 2, 1, 2, 3]  # of kinds 1, 2, 3: 40, 40, 20 %


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_dealt_evenly_every_stretch_of_a_batch_has_the_shares(rows):
    sources, _ = even(3, WEIGHTS, VIEWS).assign(64 * 500)
    stretches = sources.reshape(-1, rows)
    for source, weight in enumerate(WEIGHTS):
        counts = (stretches == source).sum(axis=1)
        assert abs(counts - rows * weight).max() < 3
        assert abs(counts.mean() - rows * weight) < 0.1, "each row is drawn by weight all the same"
    views = np.array(VIEWS)[stretches].sum(axis=1)  # 1.8 a row
    assert abs(views - 1.8 * rows).max() < 2
    alone, _ = mixer(WEIGHTS, 3).assign(64 * 500)
    assert np.array(VIEWS)[alone].reshape(-1, rows).sum(axis=1).max() > views.max() + 4


def test_an_even_deal_makes_pairs():
    with pytest.raises(ValueError, match=r"batch_size is 5; config.data.deal=even deals pairs"):
        even(0, WEIGHTS, VIEWS, batch_size=5)


def test_rows_of_a_batch_dealt_evenly_are_drawn_by_weight_one_by_one():
    sources, _ = even(0, WEIGHTS, VIEWS).assign(64 * 4000)
    shares = [(sources.reshape(-1, 64) == source).mean(axis=0) for source in range(5)]
    np.testing.assert_allclose(shares, np.array(WEIGHTS)[:, None] + np.zeros(64), atol=0.04)


@pytest.mark.parametrize(("batch_size", "lanes"), [(2, 1), (10, 5)])
def test_an_even_deal_is_the_same_in_any_pieces_and_from_any_start(batch_size, lanes):
    total = DRAWS_PER_KEY + 500  # of batches of two, whose draws are in two keys
    at_once = even(1, WEIGHTS, VIEWS, batch_size, lanes).assign(total)
    pieces = even(1, WEIGHTS, VIEWS, batch_size, lanes)
    parts = [pieces.assign(count) for count in (1, 400, total - 401)]
    for i in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), at_once[i])
    for start in (7, DRAWS_PER_KEY - 3, DRAWS_PER_KEY + 9):
        late = even(1, WEIGHTS, VIEWS, batch_size, lanes)
        late.seek(start)
        np.testing.assert_array_equal(
            late.dealt.sum(axis=1), np.bincount(at_once[0][:start], minlength=5)
        )
        np.testing.assert_array_equal(late.assign(total - start)[1], at_once[1][start:])
