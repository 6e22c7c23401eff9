"""Draws for a training sample: their shares, and that nothing but the sample decides them."""

import dataclasses

import numpy as np
import pytest

from data.jitter import UNCHANGED
from data.rows.table import dataset
from data.stream.batches import choose_instruction, choose_jitter, choose_num_views
from data.stream.pipeline import batches, one_pass
from data.stream.stream import Sample
from data.stream.windows import EpisodeSamples
from data.texts import FrameTexts
from data.trajectory import Source
from tests.data.fakes import SHAPE, FakeReader, png, tokenize

POUR = dataset("agiworld-on-site-pour")


def sample(row, *, number=0, frame=0, paraphrases=(), frames=100):
    episode = EpisodeSamples(
        dataset=row.name,
        episode="e",
        instruction="as recorded",
        paraphrases=paraphrases,
        num_frames=frames,
        frames=np.array([frame]),
        proprio=np.zeros((1, 20), np.float32),
        actions=np.zeros((1, 30, 20), np.float32),
        images=tuple(np.empty(1, object) for _ in row.views),
    )
    return Sample(row, episode, 0, number, lane=0)


def share(row, text, count=2000, **episode):
    texts = [choose_instruction(sample(row, number=n, **episode), seed=0) for n in range(count)]
    return texts.count(text) / count


def test_without_paraphrases_the_instruction_stays():
    assert choose_instruction(sample(dataset("Calvin")), seed=0) == "as recorded"


def test_a_sample_has_the_text_of_its_frame_and_the_paraphrases_of_that_text():
    row = dataset("Calvin")
    one = sample(row)
    places = np.array([1, 0, 1], np.int32)
    texts = FrameTexts(("reach", "grasp"), ((), ("grip", "hold")), places)
    episode = dataclasses.replace(
        one.episode, instruction="grasp", texts=texts, frames=np.array([4, 7, 9])
    )
    shown = [one._replace(episode=episode, row=row_number) for row_number in range(3)]
    assert [choose_instruction(s, None) for s in shown] == ["grasp", "reach", "grasp"]
    assert choose_instruction(shown[1], 0) == "reach"
    drawn = {choose_instruction(shown[2]._replace(number=n), 0) for n in range(50)}
    assert drawn == {"grip", "hold"}
    often = dataclasses.replace(row, original_text_share=1.0)
    assert choose_instruction(shown[2]._replace(spec=often), 0) == "grasp"


def test_the_late_instruction_comes_over_a_text_by_frame_too():
    texts = FrameTexts(("reach", "grasp"), ((), ()), np.array([0, 1], np.int32))
    one = sample(POUR, frame=99)
    episode = dataclasses.replace(one.episode, texts=texts, frames=np.array([10, 99]))
    texts_by_row = {
        row: {
            choose_instruction(one._replace(episode=episode, row=row, number=n), 0)
            for n in range(300)
        }
        for row in (0, 1)
    }
    assert POUR.late_instruction is not None
    assert texts_by_row == {0: {"reach"}, 1: {"grasp", POUR.late_instruction.text}}


def test_paraphrases_are_drawn_evenly_and_the_original_as_often_as_the_row_says():
    row = dataset("Calvin")
    for text in ("one", "two", "three"):
        assert abs(share(row, text, paraphrases=("one", "two", "three")) - 1 / 3) < 0.04
    assert share(row, "as recorded", paraphrases=("one",)) == 0
    often = dataclasses.replace(row, original_text_share=0.25)
    assert abs(share(often, "as recorded", paraphrases=("one", "two")) - 0.25) < 0.03
    assert abs(share(often, "two", paraphrases=("one", "two")) - 0.375) < 0.04


@pytest.mark.parametrize(("frame", "expected"), [(20, 0.0), (50, 0.0), (51, 0.51), (90, 0.9)])
def test_the_late_instruction_comes_in_the_second_half(frame, expected):
    late = POUR.late_instruction
    assert late is not None
    assert abs(share(POUR, late.text, frame=frame) - expected) < 0.04


def test_the_late_instruction_may_wait_for_a_frame():
    row = dataset("agiworld-on-site-microwave")
    late = row.late_instruction
    assert late is not None
    assert share(row, late.text, frame=500, frames=600) == 0
    assert abs(share(row, late.text, frame=501, frames=600) - 501 / 600) < 0.04


def test_half_of_the_samples_show_the_main_view_alone():
    counts = [choose_num_views(sample(POUR, number=n), seed=0) for n in range(2000)]
    assert set(counts) == {1, 3}
    assert abs(counts.count(1) / 2000 - 0.5) < 0.04
    assert choose_num_views(sample(dataset("AGIBOT")), seed=0) == 3


def test_without_a_seed_nothing_is_drawn():
    late = sample(POUR, frame=99, paraphrases=("x",))
    assert choose_instruction(late, seed=None) == "as recorded"
    assert choose_num_views(late, seed=None) == 3
    jittering = sample(dataset("bridge_dataset"))
    assert jittering.spec.augment == "jitter"
    assert choose_jitter(jittering, 0, seed=None) == UNCHANGED
    assert choose_jitter(jittering, 0, seed=0) != UNCHANGED


class ColourfulReader(FakeReader):
    """Two paraphrases, jitter, and one view in half of the samples."""

    def __init__(self):
        super().__init__((3, 2))
        self.spec = dataclasses.replace(self.spec, augment="jitter", main_view_share=0.5)

    def read(self, part):
        for trajectory in super().read(part):
            bright = np.array([png((100 + i, part, 0)) for i in range(self.frames)], object)
            yield dataclasses.replace(
                trajectory, paraphrases=("aa", "b"), images=(bright,) * len(self.spec.views)
            )


def run(steps, **options):
    options = {**SHAPE, "seed": 0, "shuffle_buffer": 7, "tokenize": tokenize, **options}
    with batches([Source(ColourfulReader(), 1.0)], **options) as stream:
        return [next(stream) for _ in range(steps)]


def test_draws_reach_the_batch_and_survive_restarts_hosts_and_threads():
    every_batch = run(30)
    texts = np.concatenate([batch["input_ids"] for batch in every_batch])
    assert {tuple(row) for row in texts.tolist()} == set(map(tuple, tokenize(["aa", "b"]).tolist()))
    masks = np.concatenate([batch["view_mask"] for batch in every_batch])
    assert set(masks.sum(axis=1).tolist()) == {1, 2}
    images = np.concatenate([batch["images"] for batch in every_batch])
    assert not images[~masks].any()
    red = images[:, 0, 0, 0, 0]
    assert set(red.tolist()) == set(range(100, 105)), "pixels are as decoded"
    factors = np.concatenate([batch["jitter"] for batch in every_batch])
    orders = np.concatenate([batch["jitter_order"] for batch in every_batch])
    assert (factors.dtype, orders.dtype) == (np.float32, np.int32)
    assert (factors[masks] != 1).all()
    assert (factors[~masks] == 1).all()
    assert (orders[~masks] == [0, 1, 2]).all()
    assert len(np.unique(orders[masks], axis=0)) == 6
    late = run(4, start_step=26, threads=1, cache_mb=1.0)
    halves = [run(4, start_step=26, host=host, hosts=2) for host in range(2)]
    for step, batch in enumerate(every_batch[26:]):
        for name, array in batch.items():
            np.testing.assert_array_equal(late[step][name], array)
            joined = np.concatenate([half[step][name] for half in halves])
            np.testing.assert_array_equal(joined, array)


def test_one_pass_shows_samples_as_recorded():
    batches_made = list(one_pass([Source(ColourfulReader(), 1.0)], **SHAPE, tokenize=tokenize))
    assert all(batch["view_mask"][:, :2].all() for batch in batches_made)
    frames = np.concatenate([batch["images"][:, 0, 0, 0, 0] for batch in batches_made])
    assert frames.tolist() == [*range(100, 105)] * 5
    assert all((batch["jitter"] == 1).all() for batch in batches_made), (
        "one signature for a mixture"
    )
    assert all((batch["jitter_order"] == [0, 1, 2]).all() for batch in batches_made)


def test_rows_without_augmentation_keep_their_colours_in_a_mixture_that_jitters():
    plain = FakeReader((3,), name="bridge_dataset")
    sources = [Source(ColourfulReader(), 1.0), Source(plain, 1.0)]
    options = {**SHAPE, "seed": 0, "shuffle_buffer": 7, "tokenize": tokenize}
    with batches(sources, **options) as stream:
        batches_made = [next(stream) for _ in range(5)]
    domains = np.concatenate([batch["domain_id"] for batch in batches_made])
    factors = np.concatenate([batch["jitter"] for batch in batches_made])
    of_plain = domains == plain.spec.domain_id
    assert 0 < of_plain.sum() < len(domains)
    assert (factors[of_plain] == 1).all()
    assert (factors[~of_plain][:, 0] != 1).all()


def test_a_mixture_without_augmentation_has_no_jitter_fields():
    sources = [Source(FakeReader((3,)), 1.0)]
    with batches(sources, **SHAPE, seed=0, shuffle_buffer=7, tokenize=tokenize) as stream:
        assert not {"jitter", "jitter_order"} & set(next(stream))
    shown = list(one_pass(sources, **SHAPE, tokenize=tokenize))
    assert ["jitter" in batch for batch in shown] == [False] * len(shown) != []
