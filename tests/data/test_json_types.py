"""Every field of every JSON of a dataset, replaced by every type: read, or refused by name."""

import concurrent.futures
import json
import shutil
import sys
import time

import pytest

from data.faults import BadEpisodeError
from data.sources import open_metas, open_reader
from tests.data.builds import built
from tests.data.small_sets import small
from tests.data.storages import STORAGES
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
    path.write_text(dump(content))
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
