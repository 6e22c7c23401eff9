"""The contract of the trajectory API, for our own DLataset and, where installed, for dlimp's."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import data.readers.rlds
from data.readers.dlataset import DLataset

pytestmark = pytest.mark.rlds


@pytest.fixture(params=["own", "dlimp"], scope="module")
def dlataset(request):
    if request.param == "own":
        return DLataset
    return pytest.importorskip("dlimp", reason="dlimp is optional").DLataset


@pytest.fixture(scope="module")
def builder(fixtures):
    return tfds.builder_from_directory(fixtures / "bridge_dataset" / "1.0.0")


def read(dataset):
    """The trajectories by their index; parallel maps may deliver them in any order."""
    return sorted(dataset.iterator(), key=lambda traj: traj["_traj_index"][0])


def test_trajectories_carry_steps_metadata_and_numbers(dlataset, builder):
    trajectories = read(dlataset.from_rlds(builder, split="train[5:8]", shuffle=False))
    stored = list(builder.as_dataset(split="train[5:8]"))
    assert len(trajectories) == 3
    for number, (ours, theirs) in enumerate(zip(trajectories, stored, strict=True)):
        steps = list(theirs["steps"].as_numpy_iterator())
        assert ours["_len"].tolist() == [10] * 10
        assert ours["_traj_index"].tolist() == [number] * 10
        assert ours["_frame_index"].tolist() == list(range(10))
        file_path = theirs["episode_metadata"]["file_path"].numpy()
        metadata = ours["traj_metadata"]["episode_metadata"]["file_path"]
        assert metadata.tolist() == [file_path] * 10
        states = np.stack([step["observation"]["state"] for step in steps])
        np.testing.assert_array_equal(ours["observation"]["state"], states)
        assert ours["language_instruction"][0] == steps[0]["language_instruction"]


def test_images_stay_encoded(dlataset, builder):
    (traj,) = read(dlataset.from_rlds(builder, split="train[:1]", shuffle=False))
    images = traj["observation"]["image_0"]
    assert images.shape == (10,)
    assert all(image.startswith(b"\xff\xd8") for image in images), "JPEG"


def test_traj_map_sees_complete_trajectories(dlataset, builder):
    dataset = dlataset.from_rlds(builder, split="train[:2]", shuffle=False).traj_map(
        lambda traj: {
            "_traj_index": traj["_traj_index"],
            "travel": tf.reduce_sum(traj["action"][:, :3], axis=0),
        }
    )
    plain = read(dlataset.from_rlds(builder, split="train[:2]", shuffle=False))
    for ours, traj in zip(read(dataset), plain, strict=True):
        assert set(ours) == {"_traj_index", "travel"}
        np.testing.assert_allclose(ours["travel"], traj["action"][:, :3].sum(0), atol=1e-6)


def test_iterator_works_without_prefetch(dlataset, builder):
    dataset = dlataset.from_rlds(builder, split="train[:2]", shuffle=False)
    assert len(list(dataset.iterator(prefetch=0))) == 2


def test_options_bind_the_order_to_that_of_the_file(dlataset, builder):
    dataset = dlataset.from_rlds(builder, split="train", shuffle=False)
    ordered = dataset.with_options(data.readers.rlds.IN_FILE_ORDER).iterator()
    assert [traj["_traj_index"][0] for traj in ordered] == list(range(25))


def test_the_reader_takes_dlimp_where_it_is_installed():
    installed = importlib.util.find_spec("dlimp") is not None
    assert data.readers.rlds.DLataset.__module__ == (
        "dlimp.dataset" if installed else "data.readers.dlataset"
    )


def test_functions_are_traced_once_for_all_parts(builder):
    traced = []

    def travel(traj):
        traced.append(1)
        return {"travel": tf.reduce_sum(traj["action"], axis=0)}

    for split in ("train[:2]", "train[2:4]"):
        dataset = DLataset.from_rlds(builder, split=split, shuffle=False).traj_map(travel)
        assert len(list(dataset.iterator())) == 2
    assert len(traced) == 1
