"""Files in the layouts of ACT, robomimic and RLDS: read as planted, and by the written row."""

import dataclasses

import h5py
import numpy as np
import pytest

from data.images import load_image
from data.inference.formats import read_recording
from data.inference.questions import infer
from data.inference.recording import ACTION
from data.inference.row_text import row_source
from data.sources import open_reader
from tests.data.fakes import good
from tests.data.inference.layouts import (
    AGENT,
    FULL_STATE,
    HAND,
    HIGH,
    QPOS,
    act,
    images_of,
    rlds,
    robomimic,
    short,
    write_act,
    write_rlds,
    write_robomimic,
)
from tests.data.inference.planted import TEXT
from tests.data.inference.test_row_text import row_of

ANSWERS = {
    "grippers": "5",
    "gripper_closed": "low",
    "channel_order": "rgb",
    "rate_hz": "10",
    "instruction": "sweep",
}
OF_POSES = {"grippers": "7", "gripper_closed": "low", "rotation": "quaternion xyzw"}


def few(recording):
    return short(recording, episodes=3, every=5)


def same_arrays(read, planted):
    assert set(read.arrays) == set(planted.arrays)
    for key, parts in planted.arrays.items():
        for one, other in zip(read.arrays[key], parts, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def trained(recording, answers):
    """Row of a recording, and the trajectories that it reads."""
    needed = {name: value for name, value in answers.items() if name in infer(recording, answers)}
    row = row_of(row_source(recording, infer(recording, needed), command="python", domain="desk"))
    reader = open_reader(row, recording.root)
    return row, [t for part in range(len(reader.episodes_per_part)) for t in good(reader, part)]


def main_image(row, trajectory, frame):
    """The image of the main camera as training shows it, [64, 64, 3]."""
    return load_image(
        trajectory.images[0][frame], size=64, channel_order=row.channel_order_of(0)
    ).astype(int)


@pytest.mark.parametrize("compressed", [False, True])
def test_act(tmp_path, compressed):
    planted = few(act())
    # 12 episodes, so that their names would be sorted wrongly as texts
    planted = dataclasses.replace(
        planted, arrays={k: v * 4 for k, v in planted.arrays.items()}, texts=("",) * 12
    )
    folder = write_act(tmp_path / "desk", planted, compressed=compressed, attributes={"fps": 10})
    read = read_recording(folder)
    assert (read.name, read.storage, read.root, read.rate_hz) == ("desk", "hdf5", folder, 10.0)
    assert (read.states, read.action, read.cameras) == ((QPOS,), ACTION, (HIGH, HAND))
    order = "bgr_swapped" if compressed else "bgr_pixels"
    assert read.channel_orders == ("rgb", order)
    assert len(read.arrays[QPOS]) == 12
    np.testing.assert_allclose(read.arrays[QPOS][0], planted.arrays[QPOS][0], atol=1e-6)
    row, trajectories = trained(read, {**ANSWERS, "channel_order": order if compressed else "rgb"})
    assert [t.episode.rpartition("_")[2] for t in trajectories[:3]] == [
        "0.hdf5",
        "1.hdf5",
        "2.hdf5",
    ]
    np.testing.assert_allclose(trajectories[1].poses[:, :6], planted.arrays[QPOS][1], atol=1e-6)
    assert trajectories[1].targets is not None
    shown = images_of(planted, HIGH, 1, 30).astype(int)
    assert np.abs(main_image(row, trajectories[1], 4) - shown[4]).mean() < 12


def test_pixels_in_bgr_are_exchanged_by_the_row(tmp_path):
    planted = few(act())
    folder = write_act(tmp_path / "desk", planted)
    row, (first, *_) = trained(read_recording(folder), {**ANSWERS, "channel_order": "bgr_pixels"})
    shown = images_of(planted, HIGH, 0, 30).astype(int)
    np.testing.assert_array_equal(main_image(row, first, 4), shown[4][..., ::-1])


def test_robomimic(tmp_path):
    planted = few(robomimic())
    path = write_robomimic(tmp_path / "lift.hdf5", planted)
    read = read_recording(path)
    assert (read.name, read.storage, read.root, read.rate_hz) == ("lift", "hdf5", tmp_path, 20.0)
    assert (read.robot_type, read.states, read.action) == ("Panda", (FULL_STATE,), "actions")
    assert read.names == planted.names
    assert read.rgb
    same_arrays(read, planted)
    row, trajectories = trained(read, {"gripper_closed": "low", "instruction": "lift it"})
    assert [t.episode.rpartition("#")[2] for t in trajectories] == [
        f"data/demo_{i}" for i in range(3)
    ]
    np.testing.assert_allclose(
        trajectories[2].poses[:, :3], planted.episodes(FULL_STATE)[2][:, :3], atol=1e-6
    )
    shown = images_of(planted, AGENT, 2, 30).astype(int)
    np.testing.assert_array_equal(main_image(row, trajectories[2], 7), shown[7])


def test_a_folder_of_robomimic_files_is_all_their_episodes(tmp_path):
    for name in ("a", "b"):
        write_robomimic(tmp_path / f"set/{name}.hdf5", few(robomimic()))
    assert len(read_recording(tmp_path / "set").arrays["actions"]) == 6


def test_rlds(tmp_path):
    planted = few(rlds())
    read = read_recording(write_rlds(tmp_path, "desk", planted))
    assert (read.name, read.storage, read.root, read.rate_hz) == ("desk", "rlds", tmp_path, None)
    assert (read.cameras, read.text_key, set(read.texts)) == (
        ("observation.hand", "observation.image"),
        "language_instruction",
        {TEXT},
    )
    same_arrays(read, planted)
    assert read_recording(tmp_path / "desk" / "1.0.0").name == "desk"
    answers = {**OF_POSES, "rate_hz": "6"}
    answers["views"] = "observation.image,observation.hand"
    row, trajectories = trained(read, answers)
    assert row.instruction_keys == ("language_instruction",)
    np.testing.assert_allclose(
        trajectories[2].poses[:, :3], planted.arrays["observation.state"][2][:, :3], atol=1e-6
    )
    shown = images_of(planted, "observation.image", 2, 30).astype(int)
    assert np.abs(main_image(row, trajectories[2], 7) - shown[7]).mean() < 12


def damaged(tmp_path):
    path = tmp_path / "set" / "episode_0.hdf5"
    path.parent.mkdir()
    path.write_bytes(b"no file of HDF5")
    return path.parent


def without_images(tmp_path):
    return write_act(tmp_path / "set", dataclasses.replace(few(act()), shots={}))


def of_unequal_length(tmp_path):
    folder = write_act(tmp_path / "set", few(act()))
    with h5py.File(folder / "episode_1.hdf5", "a") as file:
        del file[QPOS]
        file[QPOS] = np.zeros((7, 6), np.float32)
    return folder


def without_an_array(tmp_path):
    folder = write_act(tmp_path / "set", few(act()))
    with h5py.File(folder / "episode_2.hdf5", "a") as file:
        del file[QPOS]
    return folder


def of_mixed_layouts(tmp_path):
    write_robomimic(tmp_path / "set" / "0.hdf5", few(robomimic()))
    with h5py.File(tmp_path / "set" / "1.hdf5", "w") as file:
        file["action"] = np.zeros((3, 2))
    return tmp_path / "set"


def empty(tmp_path):
    return tmp_path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged, "episode_0.hdf5 is no HDF5 file"),
        (without_images, "episode_0.hdf5 has no images of a camera"),
        (of_unequal_length, "episode_1.hdf5 has arrays of unequal length"),
        (without_an_array, "reads observations/qpos, which .*episode_2.hdf5 does not have"),
        (of_mixed_layouts, "1.hdf5 has no group data/demo_0, ..., as 0.hdf5 has"),
        (empty, "is no recording that is read: it has neither"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(tmp_path, make, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_recording(make(tmp_path))
    assert "\n" not in str(refused.value)
