"""Building into a bucket, which a folder of this machine stands for."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import tensorflow as tf
from etils.epath import backend

from data.rows.table import dataset
from data.writing import publish, shards, storage
from data.writing.build import build
from data.writing.crew import Processes
from data.writing.recorded import write_dataset
from tests.data.builds import built, request_of
from tests.data.writing.test_recorded import OPTIONS, save

pytestmark = pytest.mark.rlds
ADDRESS = "gs://bucket"


class Bucket:
    """`tf.io.gfile` with a folder in the place of the bucket; lists the files as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[str] = []

    def _there(self, path):
        path = os.fspath(path)
        return path.replace(ADDRESS, str(self.folder)) if path.startswith(ADDRESS) else path

    def __getattr__(self, name):
        function = getattr(tf.io.gfile, name)

        def call(*arguments, **options):
            paths = [self._there(a) if isinstance(a, str | os.PathLike) else a for a in arguments]
            assert not (name == "rename" and self.folder.is_dir()), "a bucket has no rename"
            if name == "copy" or (name == "GFile" and "w" in arguments[1]):
                target = Path(paths[name == "copy"])
                target.parent.mkdir(parents=True, exist_ok=True)  # objects need no folder
                self.written.append(target.name)
            return function(*paths, **options)

        return call


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    bucket = Bucket(tmp_path / "bucket")
    bucket.folder.mkdir()
    monkeypatch.setattr(backend._TfBackend, "gfile", bucket)
    return bucket


@pytest.fixture
def source(fixtures):
    return dataclasses.replace(dataset("bridge_dataset"), index_margin=2), fixtures


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def build_there(row, root, crew=None, **changes):
    request = request_of(row, root, "unused", **({"shard_mb": 0.3} | changes))
    there = dataclasses.replace(request, out=storage.folder_at(f"{ADDRESS}/sets"))
    return build(there, lambda done, total, good: None, crew)


def test_a_bucket_holds_the_same_bytes_and_its_manifest_comes_last(bucket, source, tmp_path):
    row, root = source
    local = built(row, root, tmp_path / "local", shard_mb=0.3)
    made = build_there(row, root)
    assert str(made.folder) == f"{ADDRESS}/sets/bridge_dataset/1.0.0"
    folder = bucket.folder / "sets/bridge_dataset/1.0.0"
    assert contents(folder) == contents(local.folder)
    assert made.manifest["files"] == local.manifest["files"]
    assert bucket.written[-1] == "manifest.json"
    assert [p.name for p in (bucket.folder / "sets").iterdir()] == ["bridge_dataset"]
    again = build_there(row, root)
    assert (again.new, again.manifest) == (False, made.manifest)
    with pytest.raises(ValueError, match="already holds another dataset, made with another shard"):
        build_there(row, root, shard_mb=0.2)


def test_a_run_that_stopped_in_a_bucket_continues_and_others_keep_out(bucket, source, tmp_path):
    row, root = source

    def some(job, reader, tasks):
        for event in Processes(1)(job, reader, tasks):
            yield event
            if isinstance(event, shards.ShardDone) and event.shard == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_there(row, root, some)
    folder = bucket.folder / "sets/bridge_dataset/1.0.0"
    first = sorted(folder.iterdir())
    assert len(first) == 2
    assert "manifest.json" not in bucket.written
    times = [path.stat().st_mtime_ns for path in first]
    made = build_there(row, root)
    assert [path.stat().st_mtime_ns for path in first] == times
    local = built(row, root, tmp_path / "local", shard_mb=0.3)
    assert contents(folder) == contents(local.folder)
    assert json.loads((folder / "manifest.json").read_text()) == made.manifest

    (folder / "manifest.json").unlink()  # somebody else's files
    with pytest.raises(ValueError, match=r"bridge_dataset already holds 1\.0\.0; build elsewhere"):
        build_there(row, root)


def test_recorded_episodes_go_to_a_bucket_as_to_a_disk(bucket, tmp_path, monkeypatch):
    paths = save(tmp_path / "episodes")
    local = write_dataset(paths, tmp_path / "local", **OPTIONS)
    there = storage.folder_at(f"{ADDRESS}/sets")
    copied = []

    def write(some=paths):
        return write_dataset(some, there, **OPTIONS, on_copied=lambda *pair: copied.append(pair))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_json", stop)  # when all but the manifest is there
        with pytest.raises(KeyboardInterrupt):
            write()
    folder = bucket.folder / "sets/libero_demos/1.0.0"
    assert contents(folder) == contents(local.folder)
    assert not (folder / "manifest.json").exists()
    with pytest.raises(ValueError, match="no manifest, and none of a run on these 3 episode files"):
        write(paths[:3])
    made = write()
    assert bucket.written[-1] == "manifest.json"
    assert (made.new, made.folder) == (True, there / "libero_demos/1.0.0")
    assert made.manifest["files"] == local.manifest["files"]
    assert contents(folder) == contents(local.folder)
    assert copied[-1] == (len(contents(folder)),) * 2
    assert [path.name for path in (bucket.folder / "sets").iterdir()] == ["libero_demos"]
    assert write().new is False
    (folder / "manifest.json").unlink()  # somebody else's files
    with pytest.raises(ValueError, match="has files and no manifest"):
        write()


def test_schemes_that_are_no_bucket_are_refused():
    with pytest.raises(ValueError, match="http://host/x cannot be written to; allowed are"):
        storage.folder_at("http://host/x")
    assert storage.folder_at("a/b") == Path("a/b")
