"""Order is part of the RLDS reader's contract: the same trajectories in the same order, any load.

Each test runs for the built-in trajectory API, for a stand-in as unordered as dlimp, and for dlimp
where it is installed (it is on no package index, so continuous integration skips that one).
"""

import contextlib
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import data.readers.rlds
from data.readers.dlataset import DLataset
from data.readers.rlds import RldsReader
from data.rows.table import dataset
from data.stream.pipeline import batches
from data.trajectory import Source
from tests.data.fakes import assert_equal, good, png, tokenize
from tests.data.unordered import UnorderedDLataset

pytestmark = pytest.mark.rlds

# the sample's episodes are too short for the margin of 10 frames
BRIDGE = dataclasses.replace(dataset("bridge_dataset"), index_margin=2)
RUNS = [1, pytest.param(20, marks=pytest.mark.slow)]


@pytest.fixture(params=["own", "stand-in", "dlimp"])
def dlataset(request, monkeypatch):
    """The trajectory API that the reader uses."""
    if request.param == "dlimp":
        used = pytest.importorskip("dlimp", reason="dlimp is optional").DLataset
    else:
        used = {"own": DLataset, "stand-in": UnorderedDLataset}[request.param]
    monkeypatch.setattr(data.readers.rlds, "DLataset", used)
    return used


@contextlib.contextmanager
def busy_threads():
    """Keeps TensorFlow's threads and Python's lock busy, so that parallel maps overtake."""
    work = tf.data.Dataset.range(10**9).map(
        lambda _: tf.reduce_sum(tf.random.normal([200_000])), num_parallel_calls=8
    )
    done = threading.Event()

    def burn():
        for _ in work:
            if done.is_set():
                return

    threads = [threading.Thread(target=burn, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def write_set(root, sizes):
    """An RLDS set of one episode per size: so many frames, whose text is the episode's number."""
    features = {
        "observation": {
            "state": tfds.features.Tensor(shape=(7,), dtype=np.float32),
            "image_0": tfds.features.Image(shape=(8, 8, 3)),
        },
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
    }
    top = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(features)})
    folder = root / "bridge_dataset" / "1.0.0"
    folder.mkdir(parents=True)
    path = folder / "bridge_dataset-train.tfrecord-00000-of-00001"
    image = png((1, 2, 3))
    with tf.io.TFRecordWriter(str(path)) as file:
        for number, frames in enumerate(sizes):
            state = np.linspace(0, 1, 7, dtype=np.float32)
            step = {
                "observation": {"state": state, "image_0": image},
                "action": state,
                "language_instruction": str(number),
            }
            file.write(top.serialize_example({"steps": [step] * frames}))
    split = tfds.core.SplitInfo(name="train", shard_lengths=[len(sizes)], num_bytes=1)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=top, split_infos=[split], check_data=False
    )


@pytest.fixture(scope="module")
def long_first(tmp_path_factory):
    """A set whose first episode takes so long to parse that threads have others ready before it."""
    root = tmp_path_factory.mktemp("long_first")
    write_set(root, sizes=(100_000, *[3] * 40))
    return root


def test_episodes_that_are_parsed_sooner_do_not_come_sooner(dlataset, long_first):
    reader = RldsReader(BRIDGE, long_first)
    for _ in range(3):
        texts = [trajectory.instruction for trajectory in good(reader, 0)]
        assert texts == [str(number) for number in range(41)]


@pytest.mark.parametrize("runs", RUNS)
def test_order_is_that_of_the_file_under_load(dlataset, fixtures, runs):
    reader = RldsReader(BRIDGE, fixtures)
    builder: Any = tfds.builder_from_directory(fixtures / "bridge_dataset" / "1.0.0")
    stored = [list(episode["steps"].as_numpy_iterator()) for episode in builder.as_dataset("train")]
    assert len(stored) == 25
    with busy_threads():
        for _ in range(runs):
            for steps, ours in zip(stored, good(reader, 0), strict=True):
                assert ours.instruction == steps[0]["language_instruction"].decode()
                first = np.stack([step["observation"]["state"][:3] for step in steps])
                np.testing.assert_array_equal(ours.poses[:, :3], first)


@pytest.mark.parametrize("runs", RUNS)
def test_batches_resume_bit_for_bit_under_load(dlataset, fixtures, runs):
    source = Source(RldsReader(BRIDGE, fixtures), 1.0)
    shape = {"batch_size": 16, "num_actions": 30, "num_views": 3, "image_size": 8}
    options = {**shape, "seed": 3, "shuffle_buffer": 1000, "tokenize": tokenize}
    with batches([source], **options) as stream:
        complete = [next(stream) for _ in range(30)]  # more than two epochs
    with busy_threads():
        for _ in range(runs):
            with batches([source], **options, start_step=26) as stream:
                assert_equal([next(stream) for _ in range(4)], complete[26:])
