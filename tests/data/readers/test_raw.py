"""Data in the form of their first publication give the samples of their golden recordings."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from data.faults import BadEpisodeError
from data.readers import pickles
from data.rows.table import dataset
from data.sources import open_reader
from data.stream.windows import EpisodeSamples, episode_samples
from tests.data.conftest import FIXTURES
from tests.data.fakes import good
from tests.data.raw_storages import (
    robot_observations,
    write_annotations,
    write_bridge_episode,
    write_bridge_raw,
    write_calvin,
    write_moment,
)
from tests.data.storages import read_array

GOLDEN = FIXTURES / "golden_data"


def samples_of(row: str, folder: Path) -> list[EpisodeSamples]:
    reader = open_reader(dataset(row), folder)
    return [
        episode_samples(trajectory, reader.spec, 30)
        for part in range(len(reader.episodes_per_part))
        for trajectory in good(reader, part)
    ]


def check_golden(name: str, episodes: list[EpisodeSamples]) -> None:
    expected, z = (
        json.loads((GOLDEN / name / "expected.json").read_text()),
        np.load(GOLDEN / name / "expected.npz"),
    )
    assert [len(samples) for samples in episodes] == expected["samples_per_episode"]
    assert [[samples.instruction] for samples in episodes] == expected["instructions_per_episode"]
    np.testing.assert_array_equal(np.concatenate([s.frames for s in episodes]), z["all/index"])
    proprio = np.concatenate([s.proprio for s in episodes])
    actions = np.concatenate([s.actions for s in episodes])
    np.testing.assert_allclose(proprio, z["all/proprio"], atol=2e-5)
    np.testing.assert_allclose(actions.mean(axis=1), z["all/action_mean"], atol=2e-5)


def test_calvin_as_published_gives_the_golden_samples(tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "calvin/expected.json").read_text())
    stretches = []
    for episode in range(2):
        with h5py.File(GOLDEN / f"calvin/episode_{episode}.hdf5") as file:
            states = robot_observations(read_array(file, "proprio"))
            keys = ("observation/third_image", "observation/wrist_image")
            files = [[bytes(data) for data in read_array(file, key)] for key in keys]
        first = 5000 * episode + 11
        stretches.append((first, first + len(states) - 1))
        for i, state in enumerate(states):
            # their colours are exchanged as OpenCV leaves them
            pixels = [np.asarray(Image.open(io.BytesIO(view[i])))[..., ::-1] for view in files]
            views = dict(zip(("rgb_static", "rgb_gripper"), pixels, strict=True))
            write_moment(tmp_path, first + i, state, views)
    texts = [text for (text,) in expected["instructions_per_episode"]]
    write_annotations(tmp_path, texts, stretches, recordings=[(0, 4000), (5000, 9000)])
    episodes = samples_of("calvin_published", tmp_path)
    check_golden("calvin", episodes)
    assert episodes[0].images[0][0].shape == (48, 64, 3)


def test_bridge_as_collected_gives_the_golden_samples(tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "bridge/expected.json").read_text())
    for episode, (text,) in enumerate(expected["instructions_per_episode"]):
        with h5py.File(GOLDEN / f"bridge/episode_{episode}.hdf5") as file:
            states, actions = read_array(file, "proprio"), read_array(file, "action")
            files = [bytes(data) for data in read_array(file, "observation/image_0")]
        folder = tmp_path / f"raw/kitchen/raw/traj_group0/traj{episode}"
        lines = f"confidence: 0.5\n{text}\n"
        write_bridge_episode(folder, states, actions, [*files, files[0]], lines)
    episodes = samples_of("bridge_raw", tmp_path)
    check_golden("bridge", episodes)
    assert len(episodes[0].images[0]) == len(episodes[0].frames)


def test_a_stretch_must_lie_in_one_recording(tmp_path: Path) -> None:
    write_calvin(tmp_path)
    np.save(tmp_path / "training/ep_start_end_ids.npy", np.array([(0, 30), (1010, 1900)]))
    reader = open_reader(dataset("calvin_published"), tmp_path)
    _, second = (next(reader.read(part)) for part in range(2))
    assert isinstance(second, BadEpisodeError)
    assert "moments 1007 to 1015: it lies in no recording" in str(second)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"language": {"ann": ["a"]}}, "language/ann and info/indx are needed"),
        ({"language": {"ann": ["a"]}, "info": {"indx": [(1, 2, 3)]}}, r"\[n, 2\] integers"),
        ({"language": {"ann": ["a"]}, "info": {"indx": [(1, 2), (3, 4)]}}, "1 texts for 2"),
        ([1, 2], "is no list of annotations"),
    ],
)
def test_annotations_of_another_form_are_refused(content: Any, reason: str, tmp_path: Path) -> None:
    write_calvin(tmp_path)
    np.save(tmp_path / "training/lang_annotations/auto_lang_ann.npy", np.array(content, object))
    with pytest.raises(ValueError, match=reason):
        open_reader(dataset("calvin_published"), tmp_path)


@pytest.mark.parametrize("view", [np.zeros((8, 8), np.float32), np.zeros((8, 8, 4), np.uint8)])
def test_a_view_of_calvin_that_is_no_colour_image_is_refused(view: Any, tmp_path: Path) -> None:
    write_calvin(tmp_path)
    first = min(tmp_path.rglob("episode_*7.npz"))
    with np.load(first) as archive:
        arrays = {key: archive[key] for key in archive.files}
    np.savez(first, **(arrays | {"rgb_gripper": view}))
    shape = re.escape(str(list(view.shape)))
    with pytest.raises(ValueError, match=rf"{first.name}, rgb_gripper is {view.dtype}{shape}"):
        open_reader(dataset("calvin_published"), tmp_path)


def test_texts_of_calvin_are_read_as_they_are_stored(tmp_path: Path) -> None:
    row = write_calvin(tmp_path)
    path = tmp_path / "training/lang_annotations/auto_lang_ann.npy"
    content = np.load(path, allow_pickle=True).item()
    for stored, expected in ((b"push", "push"), (7, "malformed"), ("", "no_instruction")):
        content["language"]["ann"][0] = stored
        np.save(path, np.array(content, object))
        (item,) = open_reader(row, tmp_path).read(0)
        outcome = item.kind if isinstance(item, BadEpisodeError) else item.instruction
        assert outcome == expected
    content["language"]["ann"] = "ab"
    np.save(path, np.array(content, object))
    with pytest.raises(ValueError, match="language/ann is one text"):
        open_reader(row, tmp_path)


def test_bridge_episodes_without_a_text_are_read_where_the_row_states_one(tmp_path: Path) -> None:
    row = write_bridge_raw(tmp_path)
    assert open_reader(row, tmp_path).episodes_per_part == (1, 1), "one has no text"
    for change in (
        {"empty_text": "stated", "stated_text": "do it"},
        {"fixed_instruction": "do it"},
    ):
        reader = open_reader(dataclasses.replace(row, **change), tmp_path)
        assert len(reader.episodes_per_part) == 3
        assert good(reader, 0)[0].instruction == "do it"
    (tmp_path / "raw/toykitchen").rename(tmp_path / "raw/kitchen")
    for text in (tmp_path / "raw").rglob("lang.txt"):
        text.write_text("confidence: 0.3\n")
    items = [next(iter(open_reader(row, tmp_path).read(part))) for part in range(2)]
    assert all(isinstance(item, BadEpisodeError) and item.left_out for item in items)


def test_bridge_arrays_must_be_as_long_as_the_actions(tmp_path: Path) -> None:
    write_bridge_raw(tmp_path)
    (first, *_) = sorted(tmp_path.rglob("traj1"))
    reader = open_reader(dataset("bridge_raw"), tmp_path)
    assert reader.episodes_per_part == (1, 1), "one has no text"
    (first / "policy_out.pkl").write_bytes(pickle.dumps([np.zeros(7)] * 4))
    (bad,) = reader.read(0)
    assert isinstance(bad, BadEpisodeError)
    assert bad.kind == "unequal_lengths"


class Shout:
    """A pickle of it runs a command when it is loaded by Python's own means."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_give_arrays_and_run_nothing(protocol: int, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    content = {
        "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
        "texts": ["a", "b"],
        "number": np.float64(0.5),
        "bytes": b"\x00\xff",
        "who": [Shout(ran), 7],
    }
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    loaded = pickles.load_pickle(path)
    np.testing.assert_array_equal(loaded["rows"], [[0, 1, 2], [3, 4, 5]])
    assert loaded["rows"].dtype == np.float32
    assert (loaded["texts"], loaded["number"], loaded["bytes"]) == (["a", "b"], 0.5, b"\x00\xff")
    assert isinstance(loaded["who"][0], pickles.Inert)
    assert loaded["who"][1] == 7
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists(), "the test would not see it otherwise"


def test_what_is_no_pickle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(b"a text")
    with pytest.raises(ValueError, match=r"file\.pkl is no pickle of arrays"):
        pickles.load_pickle(path)
