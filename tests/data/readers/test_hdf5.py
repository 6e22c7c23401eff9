"""The forms in which HDF5 episodes and their meta files come."""

import dataclasses
import json
import re
from typing import Any

import h5py
import numpy as np
import pytest

from data.faults import BadEpisodeError
from data.images import load_image
from data.readers.hdf5 import Hdf5Images, Hdf5Reader
from data.untrusted import Places
from tests.data.fakes import good
from tests.data.random_recordings import recording
from tests.data.storages import FRAMES, TEXTS, encoded, image, small, write_hdf5, write_meta

IMAGES = [encoded(image(0, 0, frame)) for frame in range(4)]


def stored(kind):
    """IMAGES as an array of HDF5, in one of the usual forms."""
    longest = max(map(len, IMAGES))
    if kind == "fixed bytes":
        return np.array(IMAGES, f"S{longest}")
    if kind == "rows of bytes":
        rows = np.zeros((len(IMAGES), longest), np.uint8)
        for row, data in zip(rows, IMAGES, strict=True):
            row[: len(data)] = np.frombuffer(data, np.uint8)
        return rows
    array = np.empty(len(IMAGES), object)
    if kind == "bytes":
        array[:] = IMAGES
        return array.astype(h5py.string_dtype("ascii"))
    array[:] = [np.frombuffer(data, np.uint8) for data in IMAGES]
    return array.astype(h5py.vlen_dtype(np.uint8))


def write_episode(folder, images, text: Any = b"push", **more):
    row = small("VLABench")
    with h5py.File(folder / "0.hdf5", "w") as file:
        file["proprio"] = recording(row, 4, 0)["proprio"]
        if text is not None:
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
def test_forms_of_encoded_images(tmp_path, kind):
    trajectory = only(Hdf5Reader(write_episode(tmp_path, stored(kind)), tmp_path))
    (view,) = trajectory.images
    taken = view.take(np.array([3, 1, 1]))
    for place, frame in enumerate((3, 1, 1)):
        pixels = load_image(taken[place], size=32, channel_order="rgb")
        np.testing.assert_array_equal(pixels, image(0, 0, frame))
    assert len(view.take(np.array([], int))) == 0


@pytest.mark.parametrize("shape", [(480, 640, 3), (720, 1280, 3)])
def test_camera_buffers_of_two_sizes_are_pixels(tmp_path, shape):
    buffers = np.zeros((4, int(np.prod(shape))), np.uint8)
    buffers[2, ::3] = 200
    trajectory = only(Hdf5Reader(write_episode(tmp_path, buffers), tmp_path))
    pixels = trajectory.images[0][2]
    assert pixels.shape == shape
    shown = load_image(pixels, size=4, channel_order="bgr_swapped")
    assert shown[0, 0].tolist() == [200, 0, 0], "what is not encoded is not swapped"


def halves(height, width):
    """uint8[4, height, width, 3]: red on the left, blue on the right, green counts the frames."""
    images = np.zeros((4, height, width, 3), np.uint8)
    images[:, :, : width // 2, 0], images[:, :, width // 2 :, 2] = 200, 200
    images[..., 1] = 10 * np.arange(4)[:, None, None]
    return images


@pytest.mark.parametrize("order", ["height, width, channels", "channels first"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (32, 32), (640, 480), (480, 640)], ids=str)
def test_pixels_have_the_shape_of_their_array(tmp_path, size, order):
    images = halves(*size)
    array = images if order.startswith("height") else np.moveaxis(images, -1, 1)
    row = write_episode(tmp_path, array)
    (view,) = only(Hdf5Reader(row, tmp_path)).images
    taken = view.take(np.array([3, 1]))
    for place, frame in enumerate((3, 1)):
        np.testing.assert_array_equal(taken[place], images[frame])
        shown = load_image(taken[place], size=16, channel_order="bgr_swapped")
        assert shown[8, 2].tolist() == [200, 10 * frame, 0], "left"
        assert shown[8, 13].tolist() == [0, 10 * frame, 200], "right"
        assert shown[1, 2].tolist() == shown[14, 2].tolist(), "top and bottom"


def test_pixels_stay_in_the_file_until_they_are_asked_for(tmp_path):
    row = write_episode(tmp_path, halves(24, 32))
    taken = only(Hdf5Reader(row, tmp_path)).images[0].take(np.array([2, 2, 0]))
    assert isinstance(taken, Hdf5Images)
    assert [int(image[0, 0, 1]) for image in (taken[0], taken[1], taken[2])] == [20, 20, 0]
    (tmp_path / "0.hdf5").unlink()
    with pytest.raises(ValueError, match=r"0\.hdf5"):
        taken[0]


REFUSED = {
    "floats": (halves(24, 32) / 255.0, r"float64\[24, 32, 3\]"),
    "grey": (halves(24, 32)[..., 0], r"uint8\[24, 32\]"),
    "alpha": (halves(24, 32)[..., [0, 1, 2, 0]], r"uint8\[24, 32, 4\]"),
    "depth": (halves(24, 32)[..., :1].astype(np.uint16), r"uint16\[24, 32, 1\]"),
    "numbers": (np.arange(4), r"int64\[\]"),
    "a number": (np.array(3), "a single int64"),
    "lists of numbers": (
        np.array([np.arange(3)] * 4 + [None], object)[:4].astype(h5py.vlen_dtype(np.int32)),
        "int32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_array_of_an_unknown_layout_is_malformed(tmp_path, name):
    array, described = REFUSED[name]
    (bad,) = Hdf5Reader(write_episode(tmp_path, array), tmp_path).read(0)
    assert isinstance(bad, BadEpisodeError)
    assert bad.kind == "malformed"
    assert re.search(rf"rgb.* {described}", bad.reason)


def test_a_camera_buffer_of_bytes_may_end_in_zeros(tmp_path):
    image = np.zeros((480, 640, 3), np.uint8)
    image[0, 0] = 200, 100, 50
    row = write_episode(tmp_path, np.array([image.tobytes()] * 4, f"S{image.size}"))
    np.testing.assert_array_equal(only(Hdf5Reader(row, tmp_path)).images[0][2], image)


def test_a_file_as_long_as_a_camera_buffer_is_a_file(tmp_path):
    rows = np.zeros((4, 480 * 640 * 3), np.uint8)
    for frame, data in enumerate(IMAGES):
        rows[frame, : len(data)] = np.frombuffer(data, np.uint8)
    row = write_episode(tmp_path, rows)
    shown = load_image(only(Hdf5Reader(row, tmp_path)).images[0][3], size=None, channel_order="rgb")
    np.testing.assert_array_equal(shown, image(0, 0, 3))


@pytest.mark.parametrize("pixels", [False, True])
def test_a_group_has_an_array_for_each_frame(tmp_path, pixels):
    row = write_episode(tmp_path, stored("fixed bytes"))
    with h5py.File(tmp_path / "0.hdf5", "a") as file:
        del file["rgb"]
        for frame, data in enumerate(IMAGES):
            frames = image(0, 0, frame) if pixels else np.frombuffer(data, np.uint8)
            file[f"rgb/{frame + 8}"] = frames  # 8, 9, 10, 11: not in the order of their letters
    view = only(Hdf5Reader(row, tmp_path)).images[0].take(np.array([3, 0]))
    for place, frame in enumerate((3, 0)):
        shown = load_image(view[place], size=None, channel_order="rgb")
        np.testing.assert_array_equal(shown, image(0, 0, frame))
    with h5py.File(tmp_path / "0.hdf5", "a") as file:
        file["rgb/depth"] = np.zeros((4, 5, 5))
    (bad,) = Hdf5Reader(row, tmp_path).read(0)
    assert isinstance(bad, BadEpisodeError)
    assert "rgb is a group of 10, 11, 8, 9, depth; images are an array, or a group" in bad.reason


@pytest.mark.parametrize(
    "text", [b"push", np.array([b"push", b"no"]), [b"push"], "push"], ids=["b", "S", "list", "str"]
)
def test_forms_of_the_instruction(tmp_path, text):
    row = write_episode(tmp_path, stored("fixed bytes"), text=text)
    assert only(Hdf5Reader(row, tmp_path)).instruction == "push"


@pytest.mark.parametrize("place", ["text", "about/text"])
def test_the_instruction_may_be_an_attribute(tmp_path, place):
    row = write_episode(tmp_path, stored("fixed bytes"), text=None, language_instruction_key=place)
    with h5py.File(tmp_path / "0.hdf5", "a") as file:
        folder = file.require_group("about") if "/" in place else file
        folder.attrs["text"] = "push"
    assert only(Hdf5Reader(row, tmp_path)).instruction == "push"


def test_a_text_for_each_row_is_that_of_its_frame(tmp_path):
    texts = ["reach", "reach", "grasp", "lift"]
    row = write_episode(tmp_path, stored("fixed bytes"), text=texts)
    trajectory = only(Hdf5Reader(row, tmp_path))
    assert trajectory.texts is not None
    assert trajectory.texts.by_frame() == texts
    assert trajectory.instruction == "reach"


def test_the_first_of_a_list_that_is_not_by_frame_is_taken_with_a_warning(tmp_path, caplog):
    row = write_episode(tmp_path, stored("fixed bytes"), text=["push", "shove"])
    reader = Hdf5Reader(row, tmp_path)
    assert [only(reader).instruction for _ in range(2)] == ["push"] * 2
    (record,) = caplog.records
    assert "text has 2 texts for 4 frames" in record.getMessage()


def test_a_list_that_is_one_too_long_is_refused(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"), text=["push", "a", "b", "c", "d"])
    (error,) = Hdf5Reader(row, tmp_path).read(0)
    assert isinstance(error, BadEpisodeError)
    assert (error.kind, error.reason) == ("unequal_lengths", "text: 5 texts, 4 frames")


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (np.float32(3.0), "malformed", "text is float32"),
        (np.arange(8.0), "malformed", r"text is float64\[8\]"),
        (h5py.Empty("S4"), "no_instruction", "text is empty"),
        (b"", "no_instruction", "text is empty"),
        (b"\xff\xfe", "malformed", "text is no UTF-8"),
        ('["push", "shove"]', "malformed", "text is a list written as text"),
    ],
)
def test_what_is_no_instruction_is_named(tmp_path, text, kind, reason):
    row = write_episode(tmp_path, stored("fixed bytes"), text=text)
    (error,) = Hdf5Reader(row, tmp_path).read(0)
    assert isinstance(error, BadEpisodeError)
    assert error.kind == kind
    assert re.match(reason, error.reason)


def test_a_row_with_a_fixed_instruction_needs_no_text(tmp_path):
    write_episode(tmp_path, stored("fixed bytes"), text=None, language_instruction_key=None)
    row = small("VLABench", fixed_instruction="fold it")
    for key in (None, "nowhere"):
        meta = json.loads((tmp_path / "meta.json").read_text())
        meta.pop("language_instruction_key", None)
        meta |= {} if key is None else {"language_instruction_key": key}
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        assert only(Hdf5Reader(row, tmp_path)).instruction == "fold it"


def test_the_row_may_name_the_instruction(tmp_path):
    row = small("VLABench", instruction_keys=("text",))
    write_episode(tmp_path, stored("fixed bytes"))
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["language_instruction_key"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert only(Hdf5Reader(row, tmp_path)).instruction == "push"
    write_episode(tmp_path, stored("fixed bytes"), language_instruction_key=3)
    with pytest.raises(ValueError, match=r"meta.json: language_instruction_key is 3, allowed is"):
        Hdf5Reader(row, tmp_path)


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
        trajectories = [good(reader, part)[0] for part in range(2)]
        assert [len(trajectory.poses) for trajectory in trajectories] == list(FRAMES)
        assert [trajectory.paraphrases for trajectory in trajectories] == [("a", "b"), ()]
        assert reader.spec.view_keys == ("rgb/static", "rgb/wrist")
        assert reader.spec.instruction_keys == ("text",)


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


def test_one_view_may_be_named_without_a_list(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"), observation_key="rgb")
    assert Hdf5Reader(row, tmp_path).spec.view_keys == ("rgb",)


@pytest.mark.parametrize("key", [[], "", 3, {"top": "rgb"}, ["rgb", 3], None], ids=str)
def test_views_of_another_form_are_named(tmp_path, key):
    row = write_episode(tmp_path, stored("fixed bytes"), observation_key=key)
    with pytest.raises(ValueError, match=r"observation_key is .*; it must be the path of an array"):
        Hdf5Reader(row, tmp_path)


def test_the_row_may_name_the_views_in_place_of_the_meta_file(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"))
    named = dataclasses.replace(row, views=("rgb",))
    assert Hdf5Reader(named, tmp_path).spec.view_keys == ("rgb",)
    other = dataclasses.replace(row, views=("wrist",))
    message = "observation_key names rgb, but the views of dataset row 'VLABench' are wrist"
    with pytest.raises(ValueError, match=message):
        Hdf5Reader(other, tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["observation_key"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert len(only(Hdf5Reader(named, tmp_path)).images) == 1
    with pytest.raises(ValueError, match="has no 'observation_key'"):
        Hdf5Reader(row, tmp_path)


def test_what_is_no_json_is_named(tmp_path):
    row = write_episode(tmp_path, stored("fixed bytes"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json cannot be read as JSON"):
        Hdf5Reader(row, tmp_path)


def without_meta_file(folder, *names):
    """Episodes of a row that names its views, in files of these names."""
    row = dataclasses.replace(small("VLABench"), views=("rgb",), instruction_keys=("text",))
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        with h5py.File(folder / name, "w") as file:
            file["proprio"] = recording(row, 4, number)["proprio"]
            file["text"] = f"push {name}"
            file["rgb"] = stored("rows of bytes")
    return row


def texts_of(row, root):
    reader = Hdf5Reader(row, root)
    return [
        t.instruction for part in range(len(reader.episodes_per_part)) for t in good(reader, part)
    ]


@pytest.mark.parametrize("inside", ["", "VLABench"])
def test_a_folder_without_a_meta_file_is_read_by_number(tmp_path, inside):
    row = without_meta_file(tmp_path / inside, "e_10.hdf5", "e_9.h5", ".e_1.hdf5")
    assert texts_of(row, tmp_path) == ["push e_9.h5", "push e_10.hdf5"]


def test_a_file_of_the_name_is_read_alone(tmp_path):
    row = without_meta_file(tmp_path, "VLABench.hdf5", "other.hdf5")
    assert texts_of(row, tmp_path) == ["push VLABench.hdf5"]
    named = tmp_path / "VLABench"
    without_meta_file(named, "VLABench.hdf5", "other.hdf5")
    assert len(texts_of(row, named)) == 2, "the folder of the name is its dataset"


def test_the_meta_file_of_another_set_is_not_passed_over(tmp_path):
    row = without_meta_file(tmp_path, "0.hdf5")
    other = {"dataset_name": "other", "datalist": ["0.hdf5"], "observation_key": ["rgb"]}
    (tmp_path / "meta.json").write_text(json.dumps(other))
    with pytest.raises(FileNotFoundError, match="no meta file of dataset 'VLABench'"):
        Hdf5Reader(row, tmp_path)
    without_meta_file(tmp_path / "VLABench", "1.hdf5")
    assert texts_of(row, tmp_path) == ["push 1.hdf5"]


def test_a_row_that_leaves_its_views_to_a_meta_file_needs_one(tmp_path):
    without_meta_file(tmp_path, "0.hdf5")
    with pytest.raises(FileNotFoundError, match="there is no meta file"):
        Hdf5Reader(small("VLABench"), tmp_path)


def test_pixels_in_bgr_are_exchanged_where_the_row_says_so():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0] = 200
    assert load_image(pixels, size=4, channel_order="bgr_pixels")[0, 0].tolist() == [0, 0, 200]
    shown = load_image(encoded(pixels), size=4, channel_order="bgr_pixels")
    assert shown[0, 0].tolist() == [200, 0, 0], "files are decoded as they are"
