"""The forms in which HDF5 episodes and their meta files come."""

import json

import h5py
import numpy as np
import pytest

from data.hdf5 import Hdf5Reader
from data.images import load_picture
from data.places import Places
from tests.data.fakes import good
from tests.data.random_recordings import recording
from tests.data.storages import FRAMES, TEXTS, encoded, picture, small, write_hdf5, write_meta

PICTURES = [encoded(picture(0, 0, frame)) for frame in range(4)]


def stored(kind):
    """PICTURES as an array of HDF5, in one of the usual forms."""
    longest = max(map(len, PICTURES))
    if kind == "fixed bytes":
        return np.array(PICTURES, f"S{longest}")
    if kind == "rows of bytes":
        rows = np.zeros((len(PICTURES), longest), np.uint8)
        for row, data in zip(rows, PICTURES, strict=True):
            row[: len(data)] = np.frombuffer(data, np.uint8)
        return rows
    array = np.empty(len(PICTURES), object)
    if kind == "bytes":
        array[:] = PICTURES
        return array.astype(h5py.string_dtype("ascii"))
    array[:] = [np.frombuffer(data, np.uint8) for data in PICTURES]
    return array.astype(h5py.vlen_dtype(np.uint8))


def write_episode(folder, images, text=b"push", **more):
    row = small("VLABench")
    with h5py.File(folder / "0.hdf5", "w") as file:
        file["proprio"] = recording(row, 4, 0)["proprio"]
        file["text"] = text
        if isinstance(images, np.ndarray) and images.dtype.metadata:
            file.create_dataset("rgb", data=images, dtype=images.dtype)
        else:
            file["rgb"] = images
    keys = {"observation_key": ["rgb"], "language_instruction_key": "text"}
    write_meta(folder, row, ["0.hdf5"], **(keys | more))
    return row


def only(reader):
    ((trajectory,),) = [good(reader, part) for part in range(len(reader.episodes_per_part))]
    return trajectory


@pytest.mark.parametrize("kind", ["fixed bytes", "rows of bytes", "arrays of bytes"])
def test_forms_of_encoded_pictures(tmp_path, kind):
    trajectory = only(Hdf5Reader(write_episode(tmp_path, stored(kind)), tmp_path))
    (view,) = trajectory.images
    taken = view.take(np.array([3, 1, 1]))
    for place, frame in enumerate((3, 1, 1)):
        pixels = load_picture(taken[place], size=32, channel_order="rgb")
        np.testing.assert_array_equal(pixels, picture(0, 0, frame))
    assert len(view.take(np.array([], int))) == 0


@pytest.mark.parametrize("shape", [(480, 640, 3), (720, 1280, 3)])
def test_camera_buffers_of_two_sizes_are_pixels(tmp_path, shape):
    buffers = np.zeros((4, int(np.prod(shape))), np.uint8)
    buffers[2, ::3] = 200
    trajectory = only(Hdf5Reader(write_episode(tmp_path, buffers), tmp_path))
    pixels = trajectory.images[0][2]
    assert pixels.shape == shape
    shown = load_picture(pixels, size=4, channel_order="bgr_swapped")
    assert shown[0, 0].tolist() == [200, 0, 0], "what is not encoded is not swapped"


@pytest.mark.parametrize(
    "text", [b"push", np.array([b"push", b"no"]), [b"push"], "push"], ids=["b", "S", "list", "str"]
)
def test_forms_of_the_instruction(tmp_path, text):
    row = write_episode(tmp_path, stored("fixed bytes"), text=text)
    assert only(Hdf5Reader(row, tmp_path)).instruction == "push"


def test_a_meta_file_of_the_original_works_unchanged(tmp_path):
    """Absolute paths, entries that are lists, and keys that we do not read."""
    row = write_hdf5(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["datalist"] = [str(tmp_path / "0.hdf5"), [str(tmp_path / "1.hdf5"), 9, "more"]]
    meta["lang_aug_map"] = {TEXTS[0]: ["a", "b"], "other": ["c"]}
    meta["author"] = "us"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "any_name.json").write_text(json.dumps(meta))
    (elsewhere / "stats.json").write_text("[1, 2]")
    for root in (elsewhere, elsewhere / "any_name.json"):
        with pytest.raises(ValueError, match=r"json names .*0\.hdf5', which lies outside"):
            Hdf5Reader(row, root)
        reader = Hdf5Reader(row, root, Places.of(root, tmp_path))
        found = [good(reader, part)[0] for part in range(2)]
        assert [len(trajectory.poses) for trajectory in found] == list(FRAMES)
        assert [trajectory.paraphrases for trajectory in found] == [("a", "b"), ()]
        assert reader.spec.views == ("rgb/static", "rgb/wrist")
        assert reader.spec.instruction_key == "text"


def test_robot_type_comes_before_dataset_name(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"), robot_type="VLABench", dataset_name="mine")
    assert Hdf5Reader(row, tmp_path).episodes_per_part == (1,)
    write_episode(tmp_path, stored("fixed bytes"), robot_type="Other", dataset_name="VLABench")
    with pytest.raises(FileNotFoundError, match=r"no meta file .*'VLABench'.*\(Other\)"):
        Hdf5Reader(row, tmp_path)


def test_a_meta_file_may_say_that_the_colours_are_true(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"))
    assert Hdf5Reader(row, tmp_path).spec.encoded_channel_order == "bgr_swapped"
    row = write_episode(tmp_path, stored("fixed bytes"), encoded_channel_order="rgb")
    assert Hdf5Reader(row, tmp_path).spec.encoded_channel_order == "rgb"
    row = write_episode(tmp_path, stored("fixed bytes"), encoded_channel_order="BGR")
    with pytest.raises(ValueError, match="encoded_channel_order is 'BGR'"):
        Hdf5Reader(row, tmp_path)


def test_two_meta_files_of_one_dataset_are_an_error(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"))
    (tmp_path / "more.json").write_text((tmp_path / "meta.json").read_text())
    with pytest.raises(ValueError, match=r"'VLABench' has several meta files: .*meta.*more"):
        Hdf5Reader(row, tmp_path)
    assert Hdf5Reader(row, tmp_path / "more.json").episodes_per_part == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation_key": None}, "has no 'observation_key'; it has dataset_name, datalist"),
        ({"language_instruction_key": None}, "has no 'language_instruction_key'"),
        ({"datalist": []}, "lists no episode"),
        ({"observation_key": ["depth"]}, r"reads depth, which .*0.hdf5 .* has proprio, rgb, text"),
    ],
)
def test_a_meta_file_that_does_not_fit_is_an_error(tmp_path, change, message):
    row = write_episode(tmp_path, stored("fixed bytes"))
    meta = json.loads((tmp_path / "meta.json").read_text()) | change
    kept = {key: value for key, value in meta.items() if value is not None}
    (tmp_path / "meta.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=message):
        Hdf5Reader(row, tmp_path)


def test_what_is_no_json_is_named(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json cannot be read as JSON"):
        Hdf5Reader(row, tmp_path)
