"""Real BridgeData V2 episodes (10 steps each) through the RLDS reader."""

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data.datasets import DATASETS, dataset
from data.mixtures import mixture
from data.pipeline import Source, batches, one_pass
from data.readers import READERS, open_mixture, open_reader
from data.rlds import RldsReader, version_folder
from data.spec import STORAGES
from data.stream import EmptyDatasetError
from tests.data import reference
from tests.data.fakes import tokenize

pytestmark = pytest.mark.rlds

SHAPE = {"batch_size": 16, "num_actions": 30, "num_views": 3, "image_size": 64}
# the sample's episodes are too short for the margin of 10 frames
BRIDGE = dataclasses.replace(dataset("bridge_dataset"), index_margin=2)


@pytest.fixture(scope="module")
def reader(fixtures):
    return RldsReader(BRIDGE, fixtures)


@pytest.fixture(scope="module")
def stored(fixtures):
    """The episodes as tfds itself reads them: lists of steps."""
    builder: Any = tfds.builder_from_directory(fixtures / "bridge_dataset" / "1.0.0")
    return [list(ep["steps"].as_numpy_iterator()) for ep in builder.as_dataset("train")]


def test_batches_equal_the_slow_reference(reader, stored):
    expected = []
    for steps in stored:
        rows = []
        for step in steps:
            state = step["observation"]["state"].astype(np.float64)
            rotation = reference.euler_to_interleaved(state[3:6])
            closed = 1.0 - float(step["action"][-1])
            rows.append([*state[:3], *rotation, closed, *[0.0] * 10])
        found = reference.samples(rows, rate_hz=5, window_s=5, margin=2, num_actions=30)
        expected += [(steps[frame], proprio, actions) for frame, proprio, actions in found]
    whole = list(one_pass([Source(reader, 1.0)], **SHAPE, tokenize=tokenize))
    ours = {name: np.concatenate([batch[name] for batch in whole]) for name in whole[0]}
    assert len(ours["proprio"]) == len(expected) == 198
    for i, (step, proprio, actions) in enumerate(expected):
        np.testing.assert_allclose(ours["proprio"][i], proprio, atol=1e-7)
        np.testing.assert_allclose(ours["actions"][i], actions, atol=1e-7)
        text = step["language_instruction"].decode()
        np.testing.assert_array_equal(ours["input_ids"][i], tokenize([text])[0])
    assert set(ours["domain_id"].tolist()) == {0}
    assert ours["view_mask"].tolist() == [[True, False, False]] * 198
    assert not ours["images"][:, 1:].any()


def test_pictures_are_those_of_tensorflows_accurate_decoder(reader):
    trajectory = next(iter(reader.read(0)))
    whole = next(one_pass([Source(reader, 1.0)], **SHAPE, tokenize=tokenize))
    for frame in range(8):
        accurate = tf.io.decode_jpeg(
            trajectory.images[0][frame], channels=3, dct_method="INTEGER_ACCURATE"
        )
        np.testing.assert_array_equal(whole["images"][frame, 0], accurate.numpy())


def test_reading_a_part_again_gives_the_same_trajectories(reader):
    first, second = list(reader.read(0)), list(reader.read(0))
    assert len(first) == 25
    assert first[3].episode == "bridge_dataset-train.tfrecord-00000-of-00001#3"
    for a, b in zip(first, second, strict=True):
        assert (a.episode, a.instruction) == (b.episode, b.instruction)
        np.testing.assert_array_equal(a.poses, b.poses)
        assert a.images[0].tolist() == b.images[0].tolist()


def test_training_batches_resume_bit_for_bit(reader):
    options = {**SHAPE, "seed": 3, "shuffle_buffer": 1000, "tokenize": tokenize}
    with batches([Source(reader, 1.0)], **options) as stream:
        whole = [next(stream) for _ in range(30)]  # more than two epochs
    with batches([Source(reader, 1.0)], **options, start_step=26) as stream:
        for batch in whole[26:]:
            again = next(stream)
            for name, array in batch.items():
                np.testing.assert_array_equal(again[name], array)


def test_the_rows_own_margin_leaves_the_sample_nothing(fixtures):
    sources = open_mixture(mixture("bridge"), fixtures)
    options = {**SHAPE, "seed": 0, "shuffle_buffer": 10, "tokenize": tokenize}
    with (
        batches(sources, **options) as stream,
        pytest.raises(EmptyDatasetError, match=r"25 episodes: the last 10 frames"),
    ):
        next(stream)


def test_missing_features_are_listed_beside_those_there_are(fixtures):
    row = dataclasses.replace(
        BRIDGE, views=("observation.image_0", "observation.rgb"), instruction_key="text"
    )
    with pytest.raises(
        ValueError, match=r"reads observation.rgb, text, which .*is_last.*observation.image_0"
    ):
        RldsReader(row, fixtures)


def test_a_missing_dataset_says_what_is_there(fixtures):
    with pytest.raises(FileNotFoundError, match=r"no RLDS dataset at .*droid.*has bridge_dataset"):
        open_reader(DATASETS["droid_left"], fixtures)
    with pytest.raises(FileNotFoundError, match="is empty or absent"):
        open_reader(DATASETS["droid_left"], fixtures / "nowhere")


def test_the_highest_complete_version_is_taken(fixtures, tmp_path):
    info = (fixtures / "bridge_dataset" / "1.0.0" / "dataset_info.json").read_text()
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        folder = tmp_path / "bridge_dataset" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text(info)
    (tmp_path / "bridge_dataset" / "2.0.0").mkdir()  # not complete
    assert version_folder(tmp_path, "bridge_dataset").name == "1.10.0"


def test_another_recording_rate_than_the_rows_is_an_error(fixtures, tmp_path):
    folder = tmp_path / "bridge_dataset" / "1.0.0"
    shutil.copytree(fixtures / "bridge_dataset" / "1.0.0", folder)
    (folder / "manifest.json").write_text(json.dumps({"rate_hz": 10.0}))
    with pytest.raises(ValueError, match=r"recorded at 10.0 Hz, but .* rate_hz 5.0"):
        RldsReader(BRIDGE, tmp_path)
    row = dataclasses.replace(BRIDGE, rate_hz=10.0)
    assert RldsReader(row, tmp_path).episodes_per_part == (25,)


def test_a_dataset_without_steps_is_an_error(fixtures, tmp_path):
    folder = tmp_path / "bridge_dataset" / "1.0.0"
    shutil.copytree(fixtures / "bridge_dataset" / "1.0.0", folder)
    features = json.loads((folder / "features.json").read_text())
    top = features["featuresDict"]["features"]
    top["frames"] = top.pop("steps")
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"no RLDS dataset .* features are .*frames"):
        RldsReader(BRIDGE, tmp_path)


def test_every_storage_has_a_reader():
    assert set(READERS) == set(STORAGES)
