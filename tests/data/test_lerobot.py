"""What is particular to LeRobot's formats."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.images import load_picture
from data.lerobot import MAX_EPISODES_PER_PART, LeRobotReader, column_array
from data.lerobot_index import channel_names
from data.spec import Columns
from tests.data.fakes import good
from tests.data.storages import encoded, picture, small

ROW = small("AIRBOT", storage="lerobot", views=("camera",))
FRAMES = 5


def write(folder, version="v3.0", episodes=1, fps=10, **tables):
    """A v3 dataset whose pictures are in the table; no video, so no PyAV."""
    rows = []
    for episode in range(episodes):
        for frame in range(FRAMES):
            rows.append(
                {
                    "episode_index": episode,
                    "frame_index": frame,
                    "eef_6d": [100.0 * episode + frame, 0, 0, 1, 0, 0, 1, 0, 0, 1],
                    "camera": {"bytes": encoded(picture(episode % 2, 0, frame)), "path": "x.png"},
                }
            )
    (folder / "data").mkdir()
    table = pa.Table.from_pylist(rows)
    # the last row first: frames are sorted; and episodes cross the borders of row groups
    table = table.take(pa.array(np.arange(len(table))[::-1]))
    pq.write_table(table, folder / "data" / "0.parquet", row_group_size=7)
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    places = [
        {"episode_index": e, "tasks": [f"task {e}"], "data/chunk_index": 0, "data/file_index": 0}
        for e in range(episodes)
    ]
    pq.write_table(pa.Table.from_pylist(places), folder / "meta/episodes/chunk-000/0.parquet")
    info = {"codebase_version": version, "fps": fps, "data_path": "data/{file_index}.parquet"}
    (folder / "meta/info.json").write_text(json.dumps(info | {"video_path": None}))


def test_episodes_that_share_a_table_come_in_parts(tmp_path):
    write(tmp_path, episodes=2 * MAX_EPISODES_PER_PART + 3)
    reader = LeRobotReader(ROW, tmp_path)
    assert reader.episodes_per_part == (MAX_EPISODES_PER_PART, MAX_EPISODES_PER_PART, 3)
    found = good(reader, 1)
    for number, trajectory in enumerate(found, start=MAX_EPISODES_PER_PART):
        assert trajectory.poses[:, 0].tolist() == [100 * number + i for i in range(FRAMES)]
        assert trajectory.instruction == f"task {number}"
        assert trajectory.episode == f"{tmp_path}/data/0.parquet#{number}"


def test_pictures_in_the_table(tmp_path):
    write(tmp_path, episodes=2)
    (_, second) = good(LeRobotReader(ROW, tmp_path), 0)
    for frame in range(FRAMES):
        pixels = load_picture(second.images[0][frame], size=32, channel_order="rgb")
        np.testing.assert_array_equal(pixels, picture(1, 0, frame))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "v1.6"}, r"codebase_version 'v1.6'; readable are v2.0, v2.1, v3.0"),
        ({"fps": 30}, "recorded at 30 Hz, but dataset row 'AIRBOT' has rate_hz 10.0"),
        ({"episodes": 0}, "lists no episode"),
    ],
)
def test_an_index_that_does_not_fit_is_an_error(tmp_path, change, message):
    if change.get("episodes") == 0:
        write(tmp_path)
        (tmp_path / "meta/episodes/chunk-000/0.parquet").unlink()
    else:
        write(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        LeRobotReader(ROW, tmp_path)


def test_a_missing_column_is_named(tmp_path):
    write(tmp_path)
    row = small("AIRBOT", storage="lerobot", views=("camera", "wrist"))
    with pytest.raises(ValueError, match=r"reads wrist, which .*0.parquet .* has episode_index"):
        LeRobotReader(row, tmp_path)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ("a", "b")),
        ({"motors": ["a"], "tool": ["b"]}, ("a", "b")),
        ({"b": 1, "a": 0}, ("a", "b")),
        (None, None),
        ("ab", None),
        (["a"], None),
        ([1, 2], None),
        ({"b": 1, "a": 7}, None),
        ([["a", "b"]], None),
    ],
)
def test_names_of_columns_in_the_forms_that_info_json_has(names, found):
    features = {"action": {"dtype": "float32", "shape": [2], "names": names}, "odd": 3}
    assert channel_names({"features": features}) == ({} if found is None else {"action": found})
    for odd in (None, [], "x", {}):
        assert channel_names({"features": odd}) == {}


def test_the_row_of_a_reader_has_the_names_of_its_joints(tmp_path):
    write(tmp_path)
    path = tmp_path / "meta/info.json"
    names = [f"joint {i}" for i in range(9)] + ["gripper"]
    features = {"eef_6d": {"dtype": "float32", "shape": [10], "names": names}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features": features}))
    joints = (Columns("eef_6d", 7, 10),)
    row = dataclasses.replace(ROW, arms=(), joints=joints, rotation_layout="none")
    found = LeRobotReader(row, tmp_path).spec.channels
    assert [channel.name for channel in found] == ["joint 7", "joint 8", "gripper"]
    assert LeRobotReader(ROW, tmp_path).spec == ROW, "poses are named by the action space"


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1.0, 2.0], [3.0, 4.0]]),
        pa.array([[[1], [2]], [[3], [4]]]),
        pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        pa.chunked_array([pa.array([[1.0, 2.0]]), pa.array([[3.0, 4.0]])]),
    ],
    ids=["lists", "lists of lists", "fixed", "chunks"],
)
def test_forms_of_a_column(values):
    table = pa.table({"x": values})
    assert column_array(table, "x").tolist() == [[1, 2], [3, 4]]
    assert column_array(table.slice(1), "x").tolist() == [[3, 4]]


@pytest.mark.parametrize(
    "rows", [[[1.0], [2.0, 3.0, 4.0]], [[1.0], None], [[[1], [2]], [[3, 4, 5], [6]]], []]
)
def test_rows_that_are_missing_or_of_unequal_length_are_an_error(rows):
    with pytest.raises(ValueError, match=r"^x: (rows of .* numbers|no rows)"):
        column_array(pa.table({"x": rows}), "x")
