"""X-VLA's meta files as a mixture."""

import json
import shutil

import pytest

from data.faults import Faults
from data.sources import open_metas
from tests.data.storages import FRAMES, small, write_hdf5


@pytest.fixture
def folder(tmp_path):
    write_hdf5(tmp_path, small("Calvin"))
    return tmp_path


def _samples(source):
    parts = range(len(source.reader.episodes_per_part))
    return [t for part in parts for t in Faults(0).sift(source.reader.read(part))]


def test_a_file_is_a_source(folder):
    (source,) = open_metas(folder / "meta.json")
    assert (source.reader.spec.name, source.weight) == ("Calvin", 1.0)
    assert len(_samples(source)) == len(FRAMES)


def test_a_folder_is_searched_and_robot_type_names_the_row(folder, caplog):
    """The weight is that of the name, the row that of the robot, as with X-VLA."""
    meta = json.loads((folder / "meta.json").read_text())
    paths = (entry if isinstance(entry, str) else entry[0] for entry in meta["datalist"])
    meta["datalist"] = [str(folder / path) for path in paths]
    deeper = folder / "a" / "b"
    deeper.mkdir(parents=True)
    renamed = meta | {"dataset_name": "robomind-ur", "robot_type": "Calvin"}
    (deeper / "other.json").write_text(json.dumps(renamed))
    (deeper / "stats.json").write_text("[1]")
    sources = {source.reader.spec.name: source for source in open_metas(folder)}
    assert {name: source.weight for name, source in sources.items()} == {
        "Calvin": 1.0,
        "robomind-ur": 0.1,
    }
    assert {source.reader.spec.domain_id for source in sources.values()} == {2}
    assert "stats.json is no meta file" in caplog.text
    first, second = (_samples(source) for source in sources.values())
    assert [t.instruction for t in first] == [t.instruction for t in second]


def test_files_of_one_name_are_refused(folder):
    shutil.copy(folder / "meta.json", folder / "copy.json")
    with pytest.raises(ValueError, match=r"are both of dataset 'Calvin'; give one"):
        open_metas(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"dataset_name": "Clavin", "datalist": ["x"]}', "unknown dataset 'Clavin'"),
        ('{"dataset_name": ', "cannot be read as JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, content, problem):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=rf"meta\.json.*{problem}"):
        open_metas(tmp_path)


def test_a_folder_without_meta_files_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_metas(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds no meta file"):
        open_metas(tmp_path)
