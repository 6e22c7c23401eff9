"""Files that others wrote: types of JSON, and places that they may name."""

import concurrent.futures
import json
import shutil
import sys
import time

import h5py
import numpy as np
import pytest

from data.faults import BadEpisodeError
from data.readers.tfds_folders import open_builder
from data.rows.table import table_row
from data.sources import open_metas, open_mixture, open_reader
from data.untrusted import Places, fill_template
from tests.data.builds import built
from tests.data.fakes import good
from tests.data.small_sets import small
from tests.data.storages import STORAGES, write_hdf5
from tests.json_mutants import MODULE, SLOW_STEP, mutants

LIMIT_S = 20.0


CASES = {
    "meta file": ("hdf5", "meta.json"),
    "scattered": ("scattered-jpeg", "meta.json"),
    "scattered videos": ("scattered-video", "meta.json"),
    "agibot": ("lerobot-agibot", "meta.json"),
    "lerobot 2.1": ("lerobot-v2.1", "info.json"),
    "lerobot 2.1 episodes": ("lerobot-v2.1", "episodes.jsonl"),
    "lerobot 3": ("lerobot-v3", "info.json"),
}


def read(row, root):
    """All that a run reads of a dataset; bad episodes are named."""
    reader = open_reader(row, root)
    for part in range(len(reader.episodes_per_part)):
        for item in reader.read(part):
            assert not isinstance(item, BadEpisodeError) or item.kind != "unexpected", item


def sweep(path, content, dump, call, every):
    path.write_text(dump(content))
    call()  # unchanged, it is read
    wrong, tried = [], 0
    for number, (name, mutant) in enumerate(mutants(content)):
        if number % every:
            continue
        path.write_text(dump(mutant))
        began, tried = time.monotonic(), tried + 1
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            error = pool.submit(call).exception()
        if error is not None and not isinstance(error, ValueError | OSError):
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        if time.monotonic() - began > LIMIT_S:
            wrong.append(f"{name}: takes {time.monotonic() - began:.0f} s")
    assert tried
    assert wrong == []
    assert MODULE not in sys.modules


@pytest.mark.parametrize("case", CASES)
def test_another_type_is_read_or_refused(case, tmp_path):
    storage, name = CASES[case]
    root = tmp_path / "root"
    root.mkdir()
    row = STORAGES[storage](root)
    (path,) = root.rglob(name)
    read(row, root)
    if name.endswith("l"):
        lines = path.read_text().splitlines()
        content = json.loads(lines[0])

        def dump(mutant):
            return "\n".join([json.dumps(mutant), *lines[1:]])
    else:
        content = json.loads(path.read_text())

        def dump(mutant):
            return json.dumps(mutant)

    sweep(path, content, dump, lambda: read(row, root), 1)
    if name == "info.json":  # as a meta file it has to name its row
        content |= {"robot_type": row.name, "fps": table_row(row.name).rate_hz}
    if name != "episodes.jsonl":
        sweep(path, content, dump, lambda: open_metas(root), 3)


@pytest.mark.rlds
@pytest.mark.parametrize("every", [61, pytest.param(SLOW_STEP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_another_type_in_a_folder_of_tfds(name, every, fixtures, tmp_path):
    shutil.copytree(fixtures / "bridge_dataset", tmp_path / "bridge_dataset")
    path = tmp_path / "bridge_dataset" / "1.0.0" / name
    row = small("bridge_dataset")
    sweep(path, json.loads(path.read_text()), json.dumps, lambda: open_reader(row, tmp_path), every)


@pytest.mark.rlds
@pytest.mark.parametrize("every", [61, pytest.param(SLOW_STEP, marks=pytest.mark.slow)])
def test_another_type_in_the_manifest_of_a_built_set(every, tmp_path):
    row = STORAGES["hdf5"](tmp_path)
    built(row, tmp_path, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("manifest.json")
    content = json.loads(path.read_text())
    sweep(path, content, json.dumps, lambda: open_reader(row, tmp_path / "out"), every)


MARK = "imported_by_a_data_file"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported, as a dataset could ask for."""
    folder = tmp_path / "path"
    folder.mkdir()
    mark = str(tmp_path / MARK)
    (folder / f"{MARK}.py").write_text(f"import pathlib\npathlib.Path({mark!r}).touch()\n")
    monkeypatch.syspath_prepend(folder)
    yield MARK
    assert MARK not in sys.modules
    assert not (tmp_path / MARK).exists()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", "sub/../../root2/x"])
def test_a_name_stays_below_the_folder(root, name):
    places = Places.of(root)
    if name == "":
        assert places.path(root, name, "meta.json") == root
        return
    with pytest.raises(ValueError, match=r"^meta\.json names '.*', which lies outside .*root"):
        places.path(root, name, "meta.json")
    assert Places.of(root, anywhere=True).path(root, name, "meta.json") == root / name


@pytest.mark.parametrize("name", [None, 7, ["a"], {"a": 1}, "a\0b"])
def test_what_is_no_path_is_named(root, name):
    with pytest.raises(ValueError, match="a path is allowed there"):
        Places.of(root, anywhere=True).path(root, name, "meta.json")


def test_the_folder_under_another_name_is_the_folder(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    assert Places.of(link).path(root, str(root / "x"), "meta.json") == root / "x"


@pytest.mark.parametrize(
    "template",
    ["{x:>9999999999}", "{x.__class__}", "{x[0]}", "{y}", "{x!r}", "{", "{x:{x}}", "{}", 3, None],
)
def test_templates_fill_plain_fields_only(template):
    with pytest.raises(ValueError, match=r"^info\.json has a path template"):
        fill_template(template, {"x": 3}, "info.json")


def test_a_template_is_filled():
    assert fill_template("a/{x:03d}/{k}.mp4", {"x": 7, "k": "top"}, "i") == "a/007/top.mp4"


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("storage", [name for name in STORAGES if name.startswith("lerobot")])
def test_templates_and_roots_of_lerobot_stay_inside(root, storage):
    row = STORAGES[storage](root)
    (info,) = root.rglob("info.json") if list(root.rglob("info.json")) else (None,)
    if info is None:
        pytest.skip("has no info.json")
    before = info.read_text()
    for change in (
        {"data_path": "../../{episode_index}.parquet{chunk_index}{file_index}"},
        {"data_path": "/etc/{episode_index:06d}"},
        {"data_path": "{episode_index:>99999999999}"},
    ):
        _edit(info, **change)
        with pytest.raises(ValueError, match=r"info\.json (names|has a path template)"):
            open_reader(row, root)
        info.write_text(before)


def test_root_path_of_lerobot_stays_inside(root, tmp_path):
    row = STORAGES["lerobot-v2.1"](root)
    (info,) = root.rglob("info.json")
    _edit(info, root_path=str(tmp_path))
    with pytest.raises(ValueError, match="lies outside"):
        open_reader(row, root)
    _edit(info, robot_type=row.name)
    with pytest.raises(ValueError, match="lies outside"):
        open_metas(root)


def test_entries_of_meta_files_stay_inside(root, tmp_path):
    row = write_hdf5(root)
    shutil.copy(root / "0.hdf5", tmp_path / "0.hdf5")
    for entry in ("../0.hdf5", str(tmp_path / "0.hdf5"), ["../0.hdf5", 3]):
        _edit(root / "meta.json", datalist=[entry])
        with pytest.raises(ValueError, match=r"meta\.json names .* lies outside"):
            open_reader(row, root)
        assert len(good(open_reader(row, root, Places.of(root, anywhere=True)), 0)) == 1
        assert len(good(open_reader(row, root, Places.of(root, tmp_path)), 0)) == 1


def test_a_name_in_a_meta_file_imports_nothing(root, module):
    write_hdf5(root, small("Calvin"))
    for change in ({"robot_type": f"{module}:ROW"}, {"dataset_name": f"{module}:ROW"}):
        _edit(root / "meta.json", **change)
        with pytest.raises(ValueError, match="unknown dataset"):
            open_metas(root)
    with pytest.raises(ValueError, match="unknown dataset"):
        table_row(f"{module}:ROW")


@pytest.mark.rlds
@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_features_name_classes_of_tfds_alone(fixtures, root, module, key, depth):
    folder = root / "bridge_dataset"
    shutil.copytree(fixtures / "bridge_dataset", folder)
    path = folder / "1.0.0" / "features.json"
    content = json.loads(path.read_text())
    node = content
    for _ in range(depth):
        node = next(iter(node["featuresDict"]["features"].values()))
        if "sequence" in node:
            node = node["sequence"]["feature"]
    node.pop("pythonClassName")
    node[key] = f"{module}.Evil"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"features\.json names the class '{module}\.Evil'"):
        open_mixture((("bridge_dataset", 1.0),), root)


@pytest.mark.rlds
def test_json_inside_a_feature_is_read_as_well(fixtures, root, module):
    folder = root / "1.0.0"
    shutil.copytree(fixtures / "bridge_dataset" / "1.0.0", folder)
    inner = json.dumps({"a": {"type": f"{module}.Evil", "content": ""}})
    content = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": inner},
    }
    (folder / "features.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names the class"):
        open_builder(folder)


@pytest.mark.rlds
def test_splits_name_files_of_their_folder(fixtures, root, module):
    folder = root / "1.0.0"
    shutil.copytree(fixtures / "bridge_dataset" / "1.0.0", folder)
    _edit(folder / "dataset_info.json", moduleName=module)
    open_builder(folder)
    content = json.loads((folder / "dataset_info.json").read_text())
    content["splits"][0]["filepathTemplate"] = "../../{DATASET}-{SPLIT}.{FILEFORMAT}"
    (folder / "dataset_info.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="files of a split lie in its folder"):
        open_builder(folder)


def _episode(root, spoil):
    row = write_hdf5(root)
    with h5py.File(root / "0.hdf5", "r+") as file:
        spoil(file)
    return open_reader(row, root)


def _external_link(file):
    del file["proprio"]
    file["proprio"] = h5py.ExternalLink("1.hdf5", "proprio")


def _soft_to_external(file):
    file["there"] = h5py.ExternalLink("1.hdf5", "proprio")
    del file["proprio"]
    file["proprio"] = h5py.SoftLink("/there")


def _external_storage(file):
    shape = file["proprio"].shape
    del file["proprio"]
    size = int(np.prod(shape)) * 4
    file.create_dataset("proprio", shape, "f4", external=[("1.hdf5", 0, size)])


def _frame_elsewhere(file):
    frames = file["rgb/wrist"][()]
    del file["rgb/wrist"]
    for number, frame in enumerate(frames):
        file[f"rgb/wrist/{number}"] = frame
    del file["rgb/wrist/1"]
    file["rgb/wrist/1"] = h5py.ExternalLink("1.hdf5", "rgb/wrist")


def _text_elsewhere(file):
    del file["text"]
    file["text"] = h5py.ExternalLink("1.hdf5", "text")


def _virtual(file):
    shape = file["proprio"].shape
    del file["proprio"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("1.hdf5", "proprio", shape)
    file.create_virtual_dataset("proprio", layout)


def _loop(file):
    del file["proprio"]
    file["a"], file["proprio"] = h5py.SoftLink("/proprio"), h5py.SoftLink("/a")


def _huge(file):
    del file["proprio"]
    file.create_dataset("proprio", (2**33, 7), "f4", chunks=(1024, 7))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_external_link, "a link into another file, which is refused"),
        (_frame_elsewhere, "a link into another file, which is refused"),
        (_text_elsewhere, "a link into another file, which is refused"),
        (_soft_to_external, "a link into another file, which is refused"),
        (_external_storage, "keeps its values in other files, which is refused"),
        (_virtual, "keeps its values in other files, which is refused"),
        (_loop, "its links lead in a circle"),
        (_huge, "allowed are 1073741824"),
    ],
)
def test_an_hdf5_file_leads_nowhere_else(root, spoil, reason):
    with pytest.raises(ValueError, match=reason):  # the first episode is looked at on opening
        _only(_episode(root, spoil))


def _only(reader):
    (item,) = reader.read(0)
    raise item
