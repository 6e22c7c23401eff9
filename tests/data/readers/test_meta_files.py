"""The forms of a meta file's list of episodes."""

import json
from pathlib import Path

import pytest

from data.readers.meta_files import find_meta_file
from data.untrusted import Places


def write(folder, datalist):
    (folder / "meta.json").write_text(json.dumps({"dataset_name": "set", "datalist": datalist}))
    return find_meta_file(folder, "set", Places.of(folder, anywhere=True))


@pytest.mark.parametrize("entry", ["a/0.h5", ["a/0.h5", 4], {"path": "a/0.h5", "length": 4}])
def test_an_entry_is_a_path_or_has_one(tmp_path, entry):
    assert write(tmp_path, [entry, "/elsewhere/1.h5"]).paths == [
        tmp_path / "a/0.h5",
        Path("/elsewhere/1.h5"),
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file": "0.h5"}, r"is \{'file': '0.h5'\}; it must be the path .* dictionary .* 'path'"),
        ({"path": 3}, r"is \{'path': 3\}; it must be"),
        (3, "is 3; it must be the path"),
        (None, "is None; it must be the path"),
        ([], r"is \[\]; it must be the path"),
        (["x" * 200, []][1:], r"is \[\[\]\]; it must be the path"),
        ("s3://bucket/0.h5", "s3://bucket/0.h5 is no path of this machine"),
    ],
    ids=str,
)
def test_an_entry_of_another_form_is_named(tmp_path, entry, message):
    with pytest.raises(ValueError, match=rf"meta\.json: .*{message}"):
        _ = write(tmp_path, ["0.h5", entry]).paths


@pytest.mark.parametrize("datalist", [{"0.h5": 1}, [], "0.h5", 3])
def test_datalist_is_a_list_of_episodes(tmp_path, datalist):
    with pytest.raises(ValueError, match=r"lists no episode in 'datalist': it is .*, and must be"):
        write(tmp_path, datalist)


def test_a_long_entry_is_cut_in_the_message(tmp_path):
    with pytest.raises(ValueError, match="it must be the path") as error:
        _ = write(tmp_path, [{"file": "x" * 5000}]).paths
    assert len(str(error.value)) < 400


def test_entries_that_are_dictionaries_need_their_keys(tmp_path):
    meta = write(tmp_path, [{"path": "a", "name": "b"}])
    assert meta.values(meta.entries[0], "name", "path") == ["b", "a"]
    for entry in (meta.entries[0], "a", 3, None):
        with pytest.raises(ValueError, match="must be a dictionary with name, instruction"):
            meta.values(entry, "name", "instruction")
