"""Episodes that are folders of loose files."""

import dataclasses
import json
from typing import Any

import h5py
import numpy as np
import pytest

from data.readers.scattered import ScatteredReader
from data.rows.table import dataset
from data.stream.pipeline import one_pass
from data.trajectory import BadEpisodeError, Source
from tests.data.fakes import good, tokenize
from tests.data.storages import FRAMES, read_array, write_agiworld, write_x2robot


def test_grippers_in_two_arrays_stand_in_for_the_one(tmp_path):
    """The older recordings of the on-site challenge."""
    row = write_agiworld(tmp_path, "agiworld-on-site-conveyor-extra")
    with h5py.File(tmp_path / "episode0" / "proprio_stats.h5", "a") as file:
        both = read_array(file, "action/effector/position")
        del file["action/effector/position"]
        file["action/left_effector/position"] = both[:, :1]
        file["action/right_effector/position"] = both[:, 1]
    (trajectory,) = good(ScatteredReader(row, tmp_path), 0)
    np.testing.assert_allclose(trajectory.poses[:, [9, 19]], both)
    assert trajectory.images[2][3].startswith(b"\xff\xd8")


def test_the_same_samples_in_joints(tmp_path):
    poses = write_agiworld(tmp_path)
    joints = dataclasses.replace(
        dataset("agiworld-on-site-pack-joints"),
        rate_hz=poses.rate_hz,
        window_s=poses.window_s,
        index_margin=poses.index_margin,
        augment="none",
    )
    state = np.arange(FRAMES[0] * 14.0).reshape(FRAMES[0], 14)
    for episode, frames in enumerate(FRAMES):
        with h5py.File(tmp_path / f"episode{episode}" / "aligned_joints.h5", "a") as file:
            file["state/joint/position"] = state[:frames]
            grippers = read_array(file, "action/effector/position")
    options: dict[str, Any] = {"batch_size": 99, "num_actions": 30, "num_views": 3, "image_size": 8}
    first, second = (
        next(one_pass([Source(ScatteredReader(row, tmp_path), 1.0)], **options, tokenize=tokenize))
        for row in (poses, joints)
    )
    np.testing.assert_array_equal(first["images"], second["images"])
    last_row = second["proprio"][-1]
    frame = int(last_row[0]) // 14
    np.testing.assert_allclose(last_row, [*state[frame], *grippers[frame], 0, 0, 0, 0], rtol=1e-6)


def test_a_short_episode_starts_a_sample_at_its_first_frame(tmp_path):
    row = write_agiworld(tmp_path)
    row = dataclasses.replace(row, index_margin=61, window_s=6.1)
    options: dict[str, Any] = {"batch_size": 9, "num_actions": 30, "num_views": 3, "image_size": 8}

    def samples(first_always):
        changed = dataclasses.replace(row, first_always=first_always, static_epsilon=0.0)
        sources = [Source(ScatteredReader(changed, tmp_path), 1.0)]
        return sum(len(b["proprio"]) for b in one_pass(sources, **options, tokenize=tokenize))

    assert samples(first_always=False) == 0
    assert samples(first_always=True) == 2, "one of each episode"


def test_videos_and_numbers_must_be_of_one_length(tmp_path):
    row = write_x2robot(tmp_path)
    path = tmp_path / "day/run0/run0.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"data": content["data"][:-1]}))
    (error,) = ScatteredReader(row, tmp_path).read(0)
    assert isinstance(error, BadEpisodeError)
    assert error.kind == "unequal_lengths"
    assert "run0: arrays of unequal length: {'faceImg': 11" in str(error)


@pytest.mark.parametrize("entry", [{"path": "day"}, 3, ["episode0"]])
def test_an_entry_without_its_keys_is_named(tmp_path, entry):
    row = write_x2robot(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"datalist": [entry]}))
    with pytest.raises(ValueError, match=r"meta\.json: an entry of datalist .* with path, name"):
        ScatteredReader(row, tmp_path)


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (["push"], None, ""),
        (None, "no_instruction", "is empty"),
        (7, "malformed", "the instruction is int; read is text"),
        ([0], "malformed", "the instruction is int; read is text"),
        ({"en": "push"}, "malformed", "the instruction is dict"),
    ],
)
def test_an_instruction_of_another_type_is_named(tmp_path, text, kind, reason):
    row = write_x2robot(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["datalist"][0]["instruction"] = text
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    (item,) = ScatteredReader(row, tmp_path).read(0)
    if kind is None:
        assert not isinstance(item, BadEpisodeError)
        assert item.instruction == "push"
    else:
        assert isinstance(item, BadEpisodeError)
        assert (item.kind, reason in item.reason) == (kind, True)


def test_paraphrases_that_are_no_list_of_texts_are_refused(tmp_path):
    row = write_x2robot(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"lang_aug_map": {"push": 3}}))
    with pytest.raises(ValueError, match=r"meta.json: lang_aug_map\['push'\] is int; read is text"):
        ScatteredReader(row, tmp_path)
